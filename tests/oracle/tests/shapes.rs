//! The oracle against the table of shapes, and the book against both.

use mmu_oracle::shape::{Shape, Shapes};

const TABLE: &str = include_str!("../shapes.toml");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/oracle.md");
const BEGIN: &str = "<!-- shapes: ";
const END: &str = "<!-- end of shapes -->";

fn shapes() -> Vec<Shape> {
    toml::from_str::<Shapes>(TABLE).unwrap().shape
}

#[test]
fn each_shape_gets_its_verdict() {
    let mut wrong = Vec::new();
    for shape in shapes() {
        let verdicts = shape.run().unwrap();
        let first = verdicts.first();
        let got = first.map(|verdict| verdict.defect);
        if got != shape.defect {
            let said = first.map_or("nothing".into(), ToString::to_string);
            wrong.push(format!("{}: wanted {:?}, got {said}", shape.name, shape.defect));
        }
        if let Some(also) = shape.also
            && !verdicts.iter().any(|verdict| verdict.defect == also)
        {
            wrong.push(format!("{}: no {also}", shape.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The evidence ends with the event that showed the defect, and has no event of later.
#[test]
fn each_verdict_has_the_events_that_led_to_it() {
    for shape in shapes() {
        for verdict in shape.run().unwrap() {
            let last = verdict.trace.last().map(|(at, _)| *at);
            assert_eq!(last, Some(verdict.at), "{}: {verdict}", shape.name);
        }
    }
}

#[test]
fn the_table_is_large_enough_and_names_are_unique() {
    let shapes = shapes();
    assert!(shapes.len() >= 160);
    let names: std::collections::BTreeSet<_> = shapes.iter().map(|shape| &shape.name).collect();
    assert_eq!(names.len(), shapes.len());
}

/// Every kind of defect that a trace can show has a shape that shows it.
#[test]
fn every_defect_has_a_shape() {
    let shown: std::collections::BTreeSet<_> =
        shapes().iter().flat_map(|shape| [shape.defect, shape.also]).flatten().collect();
    assert_eq!(shown.len(), mmu_oracle::Defect::ALL.len(), "{shown:?}");
}

/// The table of verdicts as the book has it, by the sections of the file.
fn rendered() -> String {
    let verdicts: std::collections::BTreeMap<String, String> = shapes()
        .into_iter()
        .map(|shape| {
            let verdicts = shape.run().unwrap();
            let first = verdicts.first().map(|verdict| format!("`{}`", verdict.defect));
            let also = shape.also.map(|also| format!(", then `{also}`")).unwrap_or_default();
            let rule = shape.rule.replace('<', "&lt;").replace('*', "\\*");
            let row = first.unwrap_or_else(|| "sound".into()) + &also + " | " + &rule;
            (shape.name, row)
        })
        .collect();
    let mut page = String::new();
    for line in TABLE.lines() {
        if let Some(section) = line.strip_prefix("# --- ").and_then(|l| l.strip_suffix(" ---")) {
            page +=
                &format!("\n### {section}\n\n| shape | verdict | rule |\n| --- | --- | --- |\n");
        }
        let name = line.strip_prefix("name = \"").and_then(|rest| rest.strip_suffix('"'));
        if let Some(name) = name {
            page += &format!("| {name} | {} |\n", verdicts[name]);
        }
    }
    page
}

/// `UPDATE_BOOK=1` writes the table into the book; without it the book must have it.
#[test]
fn the_book_has_the_table() {
    let book = std::fs::read_to_string(PAGE).unwrap();
    let begin = book.find(BEGIN).expect("the table's begin");
    let begin = begin + book[begin..].find('\n').unwrap() + 1;
    let end = book.find(END).expect("the table's end");
    let table = rendered() + "\n";
    println!("{table}");
    if std::env::var_os("UPDATE_BOOK").is_some() {
        std::fs::write(PAGE, [&book[..begin], &table, &book[end..]].concat()).unwrap();
    } else {
        assert!(
            book[begin..end] == table,
            "docs/src/oracle.md is out of date: UPDATE_BOOK=1 cargo test -p mmu-oracle --test shapes"
        );
    }
}
