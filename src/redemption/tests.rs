use super::*;

fn at(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap()
}

fn uses(reference: &str) -> RedemptionChange {
    RedemptionChange::Use { reference: reference.parse().unwrap() }
}

fn restores(reference: Option<&str>) -> RedemptionChange {
    RedemptionChange::Restore { reference: reference.map(|text| text.parse().unwrap()) }
}

/// A coupon after these changes, each of which must be one that is made.
fn after(changes: &[RedemptionChange]) -> Redemption {
    let mut held = Redemption::default();
    for (number, change) in changes.iter().enumerate() {
        let moment = at(number as i64);
        assert_eq!(
            held.judge(change, None, moment),
            RedemptionVerdict::Make,
            "{number}: {change:?} of {held:?}"
        );
        let used = match &held.state {
            RedemptionState::Used { reference, .. } => reference.clone(),
            _ => None,
        };
        let (state, reference) = match change {
            RedemptionChange::Use { reference } => (
                RedemptionState::Used { at: moment, reference: Some(reference.clone()) },
                Some(reference.clone()),
            ),
            RedemptionChange::Restore { .. } => (RedemptionState::Active, used),
            RedemptionChange::Revoke => (RedemptionState::Revoked, None),
        };
        held.state = state;
        held.version += 1;
        held.history.push(RedemptionEvent {
            what: change.event_kind(),
            at: moment,
            reference,
            by: "open".into(),
        });
    }
    held
}

#[test]
fn a_use_is_recognised_by_its_reference_whatever_the_time_and_another_is_refused() {
    let used = after(&[uses("o1")]);
    let late = at(1_000);
    assert_eq!(used.judge(&uses("o1"), Some(at(10)), late), RedemptionVerdict::Made);
    let by_o1 = RedemptionRefusal::Used { at: at(0), reference: Some("o1".parse().unwrap()) };
    assert_eq!(used.judge(&uses("o2"), None, late), RedemptionVerdict::Refused(by_o1));
}

#[test]
fn validity_ends_at_its_moment_and_not_before() {
    let held = Redemption::default();
    let end = at(10);
    assert_eq!(held.judge(&uses("o1"), Some(end), at(9)), RedemptionVerdict::Make);
    assert_eq!(
        held.judge(&uses("o1"), Some(end), end),
        RedemptionVerdict::Refused(RedemptionRefusal::Expired { end })
    );
    assert_eq!(after(&[uses("o1")]).judge(&restores(None), Some(end), at(11)), RedemptionVerdict::Make);
}

#[test]
fn a_restored_reference_never_uses_the_coupon_again() {
    let restored = after(&[uses("o1"), restores(None)]);
    assert_eq!(
        restored.judge(&uses("o1"), None, at(5)),
        RedemptionVerdict::Refused(RedemptionRefusal::Spent)
    );
    let used_again = after(&[uses("o1"), restores(None), uses("o2")]);
    assert_eq!(
        used_again.judge(&uses("o1"), None, at(5)),
        RedemptionVerdict::Refused(RedemptionRefusal::Spent)
    );
}

#[test]
fn a_late_repetition_of_a_restore_undoes_no_later_use() {
    let used_again = after(&[uses("o1"), restores(Some("o1")), uses("o2")]);
    assert_eq!(used_again.judge(&restores(Some("o1")), None, at(5)), RedemptionVerdict::Made);
    let another = RedemptionVerdict::Refused(RedemptionRefusal::UsedForAnother);
    assert_eq!(used_again.judge(&restores(Some("o3")), None, at(5)), another);
    assert_eq!(used_again.judge(&restores(Some("o2")), None, at(5)), RedemptionVerdict::Make);
    assert_eq!(
        Redemption::default().judge(&restores(None), None, at(5)),
        RedemptionVerdict::Refused(RedemptionRefusal::NotUsed)
    );
}

#[test]
fn what_is_revoked_stays_so() {
    for before in [vec![], vec![uses("o1")], vec![uses("o1"), restores(None)]] {
        let revoked = after(&[before, vec![RedemptionChange::Revoke]].concat());
        assert_eq!(revoked.judge(&RedemptionChange::Revoke, None, at(9)), RedemptionVerdict::Made);
        for change in [uses("o1"), uses("o2"), restores(None), restores(Some("o1"))] {
            assert_eq!(
                revoked.judge(&change, None, at(9)),
                RedemptionVerdict::Refused(RedemptionRefusal::Revoked),
                "{change:?}"
            );
        }
    }
}

#[test]
fn after_so_many_uses_there_are_no_more() {
    let changes = (0..USES_MAX).flat_map(|number| [uses(&format!("o{number}")), restores(None)]);
    let held = after(&changes.collect::<Vec<_>>());
    assert_eq!(
        held.judge(&uses("one-more"), None, at(9)),
        RedemptionVerdict::Refused(RedemptionRefusal::UsedUp)
    );
}
