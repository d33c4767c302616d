use super::super::*;

#[test]
fn what_was_reported_is_copied_reset_or_reported_again() {
    for has_copy in [false, true] {
        assert_eq!(Reported::of(Found::Mapped(5), has_copy), Reported::Copy(5));
        assert_eq!(Reported::<u64>::of(Found::Unsettled, has_copy), Reported::Mark);
    }
    assert_eq!(Reported::<u64>::of(Found::Untouched, true), Reported::Reset);
    assert_eq!(Reported::<u64>::of(Found::Untouched, false), Reported::Nothing);
}

#[test]
fn a_page_is_compared_with_its_copy_or_with_what_a_first_touch_finds() {
    let same = |page: Option<&'static str>, copy, first| {
        let (page, copy, mut asked) = (page.as_ref(), Option::as_ref(&copy), false);
        let same = is_same(page, copy, || {
            asked = true;
            &first
        });
        (same, asked)
    };
    assert_eq!(same(Some("a"), Some("a"), "z"), (true, false));
    assert_eq!(same(Some("a"), Some("b"), "a"), (false, false));
    assert_eq!(same(Some("a"), None, "a"), (true, true));
    assert_eq!(same(Some("a"), None, "z"), (false, true));
    assert_eq!(same(None, Some("a"), "a"), (true, true));
    assert_eq!(same(None, Some("a"), "z"), (false, true));
    assert_eq!(same(None, None, "z"), (true, false));
}
