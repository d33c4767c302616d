"""Brings in what the project needs to build and run, and nothing twice.

A *part* is one thing that has to be there: the linker, QEMU, the toolchain, the command runner.
Each part answers three questions, in rising order of cost:

    holds(record)   is what was noted last time still true?   (looks at files, starts nothing)
    find()          is it on this machine already?            (may ask programs for their version)
    get()           bring it in, or refuse                    (network, package manager)

`__main__` walks through the parts; `record` is the part's entry in `.cache/setup.json`, which
`hypctl doctor` prints. A run where every part holds takes a few dozen milliseconds.

What is never done: upgrade, self-update or alter a toolchain that the user has; change a file
under `/etc`; write outside the cache folder. The one exception is a package that apt installs
because nothing like it is there.

Everything that is made goes to a folder under `.cache/tmp` first and is renamed into place when it
is complete, under a lock: an interrupted run leaves nothing half done, and two runs wait for each
other. A run that cannot go on ends with a `Refusal`: what was wanted, where it was looked for,
what to do, and an exit code of its own (`report.Exit`).

Python 3.9 or newer, standard library only; started with `-S`, so that what else is installed for
that Python neither slows it down nor gets in its way.
"""

import sys

if sys.version_info < (3, 9):
    sys.stderr.write(
        "setup: cannot go on\n"
        "  wanted:  Python 3.9 or newer, as `python3`.\n"
        "  looked:  %s is Python %d.%d.\n" % ((sys.executable,) + sys.version_info[:2])
        + "  do:      Put a newer one before it on the PATH, and run this again.\n"
    )
    sys.exit(19)
