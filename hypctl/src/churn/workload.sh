# What the guest does under `hypctl churn linux`, until it has been up for $seconds: each CPU has a worker, which copies files in a ring on
# a tmpfs and verifies every checksum, just written and after the ring has come around. Now and then the contents are others.
cat > /tmp/worker << 'END'
cpu=$1 files=$2 seconds=$3 round=0
# Done when this long is over, and all of the ring was written.
now() { read -r up rest < /proc/uptime; echo "${up%%.*}"; }
fresh() { dd if=/dev/urandom of="$1" bs=65536 count=32 2> /dev/null && md5sum < "$1" > "$1.sum"; }
verify() {
    [ "$(md5sum < "$1")" = "$(cat "$1.sum")" ] && return
    echo "CPU $cpu: wrong checksum: file $1 in round $round, $2"
    exit 1
}
mkdir "/tmp/$cpu" && cd "/tmp/$cpu" && fresh 0 || exit 1
while [ "$(now)" -lt "$seconds" ] || [ "$round" -lt "$files" ]; do
    from=$((round % files)) round=$((round + 1)) to=$((round % files))
    [ ! -e "$to" ] || verify "$to" "which was written $((files - 1)) rounds ago"
    if [ $((round % 29)) = 0 ]; then
        fresh "$to" || exit 1
    else
        cp "$from" "$to" && cp "$from.sum" "$to.sum" || exit 1
    fi
    verify "$to" "just written"
done
file=0
while [ "$file" -lt "$files" ]; do
    verify "$file" "at the end"
    file=$((file + 1))
done
echo "CPU $cpu: $round files of 2 MiB, every checksum right"
END
cpu=0 cpus=$(nproc) workers= status=0
while [ "$cpu" -lt "$cpus" ]; do
    taskset "$(printf %x $((1 << cpu)))" sh /tmp/worker "$cpu" $((32 / cpus)) "$seconds" &
    workers="$workers $!"
    cpu=$((cpu + 1))
done
for worker in $workers; do
    wait "$worker" || status=1
done
exit "$status"
