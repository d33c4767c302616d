//! The oracle against the table of shapes.

use mmu_oracle::shape::{Shape, Shapes};

fn shapes() -> Vec<Shape> {
    toml::from_str::<Shapes>(include_str!("../shapes.toml")).unwrap().shape
}

#[test]
fn each_shape_gets_its_verdict() {
    let mut wrong = Vec::new();
    let mut table = String::new();
    for shape in shapes() {
        let verdicts = shape.run().unwrap();
        let first = verdicts.first();
        let got = first.map(|verdict| verdict.defect);
        let shown = got.map_or("-".into(), |defect| defect.to_string());
        table += &format!("{:55} {:24} {}\n", shape.name, shown, shape.rule);
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
    println!("{table}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_is_large_enough_and_names_are_unique() {
    let shapes = shapes();
    assert!(shapes.len() >= 160);
    let names: std::collections::BTreeSet<_> = shapes.iter().map(|shape| &shape.name).collect();
    assert_eq!(names.len(), shapes.len());
}
