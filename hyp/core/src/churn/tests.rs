mod copy;
mod course;
mod dice;
mod workers;

use alloc::string::ToString;

use super::*;
use crate::IpaRange;

const RAM: IpaRange = IpaRange { start: 0x4000_0000, end: 0x4000_0000 + (64 << 20) };

#[test]
fn the_word_is_read_as_it_is_written() {
    for (text, seconds, seed, session) in [
        ("1", 1, 0, None),
        ("60,seed=7", 60, 7, None),
        ("60,session=9", 60, 0, Some(9)),
        ("86400,seed=18446744073709551615,session=86400", 86400, u64::MAX, Some(86400)),
    ] {
        let wanted = Wanted::parse(text).unwrap();
        assert_eq!(wanted, Wanted { seconds, seed, session });
        assert_eq!(wanted.to_string(), text);
    }
    for text in [
        "",
        "0",
        "86401",
        "+1",
        "1.5",
        "60,",
        "60,seed=",
        "60,seed=-1",
        "60 ,seed=1",
        "60,seed=1,",
        "60,seed=1,seed=2",
        "60,session=0",
        "60,session=86401",
        "60,session=1,seed=1",
    ] {
        assert_eq!(Wanted::parse(text), None, "{text:?}");
    }
}

#[test]
fn what_is_counted_is_told_and_nothing_else() {
    let mut tally = Tally::new();
    assert!(tally.effects().is_empty());
    tally.add(Kind::Move, 3);
    tally.add(Kind::Move, 0);
    tally.refuse(Kind::Split);
    tally.add(Kind::Harvest, 2);
    tally.copied(5);
    tally.compared(8, false);
    tally.compared(9, true);
    let effects = tally.effects();
    assert_eq!(effects.len(), 4);
    assert_eq!(effects[&Kind::Harvest], Effect { steps: 1, changed: 7, refused: 0 });
    assert_eq!(effects[&Kind::Compare], Effect { steps: 1, changed: 17, refused: 0 });
    assert_eq!(effects[&Kind::Move], Effect { steps: 1, changed: 3, refused: 0 });
    assert_eq!(effects[&Kind::Split], Effect { steps: 0, changed: 0, refused: 1 });
    let json = serde_json::to_string(&effects).unwrap();
    assert_eq!(serde_json::from_str::<Effects>(&json).unwrap(), effects);
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
}
