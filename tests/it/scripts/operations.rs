//! The generated operations: they fit a model's state, and most are sensible, some late, doubled or wrong.
//!
//! An operation names issuances, never serials or entry ids: the model that it is applied to completes it. It therefore
//! still has a meaning when others are left out, so that failing examples become short.

use crate::helpers::native;
use coupon_system::ids::{CouponId, IssuanceId, PartitionId};
use coupon_system::issuance::KeyTag;
use coupon_system::issuance::reserve::{QueueEntries, Request};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;
use proptest_state_machine::ReferenceStateMachine;

use super::model::{
    ChosenUnit, ExpectedAnswer, ModelChange, ModelDamage, Offer, SaleWindow, ScriptModel, UnitClaim,
};

pub const COUPONS: [&str; 2] = ["a", "b"];
pub const USERS: [&str; 4] = ["u0", "u1", "u2", "u3"];
pub const KEYS: [&str; 3] = ["k0", "k1", "k2"];
/// Ids without a key are mostly new; these few repeat, as when a caller got no answer.
pub const REPEATED: u32 = 3;
const FRESH: std::ops::Range<u32> = 1_000..1_000_000;
pub const NO_BACKLOG_MAX: u64 = u64::MAX >> 12;

#[derive(Debug, Clone)]
pub enum Operation {
    Reserve {
        requests: Vec<Request>,
        backlog_max: u64,
        queue_entries: QueueEntries,
        damage: Option<ModelDamage>,
    },
    /// Entries are delivered to a consumer.
    Deliver {
        count: usize,
    },
    Settle {
        claims: Vec<UnitClaim>,
        damage: Option<ModelDamage>,
    },
    Reassign {
        request: Request,
        right_entry: bool,
        right_old: bool,
    },
    Load(CouponId),
    Change(CouponId, ModelChange),
    SetAside(IssuanceId),
    LoseUnit(IssuanceId),
}

/// Drives the generation: the model, with choices of its own.
pub struct CampaignMachine;

impl ReferenceStateMachine for CampaignMachine {
    type State = ScriptModel;
    type Transition = Operation;

    fn init_state() -> BoxedStrategy<ScriptModel> {
        let offers = COUPONS.map(|id| offer(id.parse().expect("an id")));
        offers.prop_map(ScriptModel::new).boxed()
    }

    fn transitions(model: &ScriptModel) -> BoxedStrategy<Operation> {
        let coupon = || select(COUPONS.as_slice()).prop_map(|id| id.parse().expect("an id"));
        let mut may = vec![
            (8, reserve(model).boxed()),
            (2, coupon().prop_map(Operation::Load).boxed()),
            (1, (coupon(), change()).prop_map(|(coupon, change)| Operation::Change(coupon, change)).boxed()),
        ];
        if !model.known.is_empty() {
            let waiting = !model.in_flight.is_empty();
            may.push((if waiting { 8 } else { 1 }, settle(model).boxed()));
            may.push((if waiting { 3 } else { 1 }, reassign(model).boxed()));
        }
        if !model.in_flight.is_empty() {
            let ids: Vec<_> = model.in_flight.keys().copied().collect();
            may.push((4, (1..8_usize).prop_map(|count| Operation::Deliver { count }).boxed()));
            may.push((2, select(ids.clone()).prop_map(Operation::SetAside).boxed()));
            may.push((1, select(ids).prop_map(Operation::LoseUnit).boxed()));
        }
        Union::new_weighted(may).boxed()
    }

    fn apply(mut model: ScriptModel, operation: &Operation) -> ScriptModel {
        let choose = |model: &ScriptModel, request: &Request| ChosenUnit {
            entry: format!("1-{}", model.accepted),
            unit: *model.coupons[&request.coupon].free.first().expect("a free unit"),
        };
        match operation {
            Operation::Reserve { requests, backlog_max, queue_entries, damage } => {
                model.damage.clone_from(damage);
                model.reserve(requests, *backlog_max, *queue_entries, Timestamp::UNIX_EPOCH, choose);
                model.damage = None;
            }
            Operation::Deliver { count } => drop(model.deliver(*count)),
            Operation::Settle { claims, damage } => {
                let decided: Vec<_> = claims.iter().map(|claim| model.decide(claim)).collect();
                model.damage.clone_from(damage);
                model.settle(&decided, |model, id| {
                    format!("{}-{}", model.settled + 2, model.in_flight[&id].value.sequence)
                });
                model.damage = None;
            }
            Operation::Reassign { request, right_entry, right_old } => {
                let (entry, old) = (model.entry(request.id, *right_entry), model.old(request.id, *right_old));
                model.reassign(request, &entry, old, choose);
            }
            Operation::Load(coupon) => drop(model.load(coupon)),
            Operation::Change(coupon, change) => model.change(coupon, *change),
            Operation::SetAside(id) => drop(model.set_aside(*id)),
            Operation::LoseUnit(id) => drop(model.lose_unit(*id)),
        }
        model
    }
}

fn offer(id: CouponId) -> impl Strategy<Value = Offer> {
    let total = prop_oneof![1 => 0..=2_u32, 3 => 3..=8_u32];
    (total, 1..=3_u8, window(), rarely(), rarely(), rarely()).prop_map(
        move |(total, per_user, window, paused, archived, unloaded)| {
            let mut offer = Offer::new(id.clone(), total, per_user);
            (offer.window, offer.paused, offer.archived, offer.loaded) =
                (window, paused, archived, !unloaded);
            offer
        },
    )
}

fn rarely() -> impl Strategy<Value = bool> {
    prop_oneof![14 => Just(false), 1 => Just(true)]
}

fn window() -> impl Strategy<Value = SaleWindow> {
    prop_oneof![8 => Just(SaleWindow::Open), 1 => Just(SaleWindow::NotStarted), 1 => Just(SaleWindow::Ended)]
}

fn change() -> impl Strategy<Value = ModelChange> {
    prop_oneof![
        2 => any::<bool>().prop_map(ModelChange::Pause),
        2 => rarely().prop_map(ModelChange::Archive),
        3 => window().prop_map(ModelChange::Window),
        2 => (1..3_u32).prop_map(ModelChange::Grow),
    ]
}

fn reserve(model: &ScriptModel) -> impl Strategy<Value = Operation> + use<> {
    let backlog = model.backlog();
    let backlog_max = prop_oneof![5 => Just(NO_BACKLOG_MAX), 1 => backlog..backlog + 4];
    let queue_entries = select([QueueEntries::OfOne, QueueEntries::OfMany].as_slice());
    (prop::collection::vec(request(), 1..=6), backlog_max, queue_entries, rarely_damaged(damage(model)))
        .prop_map(|(requests, backlog_max, queue_entries, damage)| Operation::Reserve {
            requests,
            backlog_max,
            queue_entries,
            damage,
        })
}

fn rarely_damaged(damage: impl Strategy<Value = ModelDamage>) -> impl Strategy<Value = Option<ModelDamage>> {
    prop::option::weighted(0.15, damage)
}

fn damage(model: &ScriptModel) -> impl Strategy<Value = ModelDamage> + use<> {
    let coupon = || select(COUPONS.as_slice()).prop_map(|id| id.parse().expect("an id"));
    let user = select(USERS.as_slice()).prop_map(|id| id.parse().expect("an id"));
    let coupons = prop_oneof![
        1 => coupon().prop_map(ModelDamage::Coupon),
        2 => (coupon(), user).prop_map(|(coupon, user)| ModelDamage::Holder(coupon, user)),
    ];
    let flights: Vec<_> = model.in_flight.keys().copied().collect();
    if flights.is_empty() {
        return coupons.boxed();
    }
    prop_oneof![1 => coupons, 2 => select(flights).prop_map(ModelDamage::Flight)].boxed()
}

fn request() -> impl Strategy<Value = Request> {
    let id = prop_oneof![
        3 => FRESH.prop_map(OperationId::Number),
        1 => (0..REPEATED).prop_map(OperationId::Number),
        3 => select(KEYS.as_slice()).prop_map(OperationId::Key),
    ];
    (select(COUPONS.as_slice()), select(USERS.as_slice()), id)
        .prop_map(|(coupon, user, id)| made_of(coupon, user, id))
}

/// What a request's id is made of, besides user and coupon.
#[derive(Debug, Clone, Copy)]
pub enum OperationId {
    Key(&'static str),
    Number(u32),
}

/// The same parts make the same request.
pub fn made_of(coupon: &str, user: &str, id: OperationId) -> Request {
    let (coupon, user) = (coupon.parse().expect("an id"), user.parse().expect("an id"));
    let (id, key) = match id {
        OperationId::Key(key) => {
            let key = key.parse().expect("a key");
            let id = IssuanceId::from_key(PartitionId::ONE, None, &user, &coupon, &key);
            (id, Some(KeyTag::new(None, &user, &key)))
        }
        OperationId::Number(number) => (unkeyed(&coupon, user.as_str(), number), None),
    };
    Request { id, coupon, user, key, trace: None }
}

/// An id like those of [`IssuanceId::generate`], but not random.
fn unkeyed(coupon: &CouponId, user: &str, number: u32) -> IssuanceId {
    let mut bytes = [0; 16];
    bytes[6] = 0x70;
    bytes[8] = 0x80;
    bytes[9] = coupon.as_str().as_bytes()[0];
    bytes[10] = user.as_bytes()[1];
    bytes[12..].copy_from_slice(&number.to_be_bytes());
    IssuanceId::from_bytes(bytes).expect("an id")
}

/// Those in flight mostly; now and then one that was settled.
fn known(model: &ScriptModel) -> impl Strategy<Value = Request> + use<> {
    let request = |id| model.known[id].0.clone();
    let known: Vec<_> = model.known.keys().map(request).collect();
    let in_flight: Vec<_> = model.in_flight.keys().map(request).collect();
    if in_flight.is_empty() {
        return select(known).boxed();
    }
    prop_oneof![6 => select(in_flight), 1 => select(known)].boxed()
}

fn mostly() -> impl Strategy<Value = bool> {
    prop_oneof![7 => Just(true), 1 => Just(false)]
}

fn settle(model: &ScriptModel) -> impl Strategy<Value = Operation> + use<> {
    let claim = (known(model), verdict(), mostly()).prop_map(|(request, verdict, right_entry)| UnitClaim {
        request,
        verdict,
        right_entry,
    });
    let flights: Vec<_> = model.in_flight.keys().copied().collect();
    let damage = match flights.is_empty() {
        true => Just(None).boxed(),
        false => rarely_damaged(select(flights).prop_map(ModelDamage::Flight)).boxed(),
    };
    (prop::collection::vec(claim, 1..=5), damage)
        .prop_map(|(claims, damage)| Operation::Settle { claims, damage })
}

fn verdict() -> impl Strategy<Value = ExpectedAnswer> {
    let older = (prop::option::of(1..=8_u32), any::<bool>());
    prop_oneof![
        5 => Just(ExpectedAnswer::Issued),
        1 => Just(ExpectedAnswer::IssuedWithFree),
        1 => Just(ExpectedAnswer::IssuedWithAnothers),
        4 => Just(ExpectedAnswer::GivenBack),
        1 => Just(ExpectedAnswer::Lost),
        1 => older.prop_map(|(serial, lost)| ExpectedAnswer::Older { unit: serial.map(native), lost }),
    ]
}

fn reassign(model: &ScriptModel) -> impl Strategy<Value = Operation> + use<> {
    (known(model), mostly(), mostly()).prop_map(|(request, right_entry, right_old)| Operation::Reassign {
        request,
        right_entry,
        right_old,
    })
}
