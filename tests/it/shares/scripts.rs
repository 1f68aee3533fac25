//! The scripts of shares against a plain model of them: sets of units, operations in a random order, and every step repeated
//! as a process repeats it whose answer was lost.

use std::collections::{BTreeMap, BTreeSet};

use coupon_system::coupon::{Coupon, CreateOutcome, admin_sync, stock};
use coupon_system::ids::{CouponId, IssuanceId, PartitionId, Shares, Unit};
use coupon_system::issuance::lookup::read_in_flight;
use coupon_system::issuance::reserve::{QueueEntries, Request, Reserved, reserve};
use coupon_system::issuance::settle::{Settled, Settlement, settle};
use coupon_system::issuance::shares::{Looked, Sight, credit_moved, lend, look};
use coupon_system::issuance::{Decision, Outcome, Reason};
use coupon_system::recovery::load_all;
use coupon_system::redis::Partition;
use coupon_system::service::ServiceStore;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;

use super::start;
use crate::helpers::{NO_BACKLOG_MAX, System, at, chance, rounds};

const SHARES: u32 = 3;
const STEPS: usize = 150;

/// Something in flight: a request's, or a move's.
#[derive(Debug, Clone)]
struct Flight {
    share: usize,
    entry: String,
    of: usize,
    decision: Decision,
    unit: Unit,
}

/// What a share has, by the model.
#[derive(Debug, Default)]
struct ShareModel {
    free: BTreeSet<Unit>,
    credited: BTreeSet<IssuanceId>,
    issued: u32,
    gains: u32,
}

struct Model<'a> {
    system: &'a System,
    coupon: Coupon,
    shares: Vec<ShareModel>,
    in_flight: BTreeMap<IssuanceId, Flight>,
    /// Moves that the ledger has.
    moved: Vec<Decision>,
    /// The latest look at each share, and its gains then.
    looked: Vec<Option<(Sight, u32)>>,
    users: u32,
    rng: StdRng,
}

impl<'a> Model<'a> {
    async fn start(system: &'a System, rng: StdRng, total: u32) -> Self {
        let id: CouponId = "hot".parse().expect("an id");
        let shares = system.backends.partitions.place(&id, SHARES).expect("there are partitions");
        let coupon = Coupon { shares, ..Coupon::new(id, total, at(-10), at(1_000)) };
        assert_eq!(system.backends.coupons.insert(&coupon).await.expect("it is written"), CreateOutcome::New);
        load_all(&system.backends.loaders(), &coupon).await.expect("it is loaded");
        let share = |place| ShareModel { free: born(place, 1, total), ..ShareModel::default() };
        let shares = (0..SHARES as usize).map(share).collect();
        let looked = (0..SHARES).map(|_| None).collect();
        Model { system, coupon, shares, in_flight: BTreeMap::new(), moved: Vec::new(), looked, users: 0, rng }
    }

    fn partition(&self, share: usize) -> &'a Partition {
        self.system.backends.partitions.get(self.partition_id(share)).expect("it is known")
    }

    fn partition_id(&self, share: usize) -> PartitionId {
        self.coupon.shares.partitions()[share]
    }

    fn place(&self, partition: PartitionId) -> usize {
        self.coupon.shares.partitions().iter().position(|other| *other == partition).expect("a share")
    }

    fn any_share(&mut self) -> usize {
        self.rng.random_range(0..SHARES as usize)
    }

    async fn reserves(&mut self) {
        let share = self.any_share();
        let (partition, count) = (self.partition(share), self.rng.random_range(1..4));
        let requests: Vec<Request> = (0..count)
            .map(|_| {
                self.users += 1;
                let user = format!("u{}", self.users).parse().expect("an id");
                let id = IssuanceId::generate(partition.id());
                Request { id, coupon: self.coupon.id.clone(), user, key: None, trace: None }
            })
            .collect();
        let answers = reserve(partition, &requests, NO_BACKLOG_MAX, QueueEntries::OfOne).await;
        for (request, answer) in requests.into_iter().zip(answers.expect("answers")) {
            let Reserved::Accepted(queued) = answer else {
                assert_eq!(answer, Reserved::Dry);
                assert!(self.shares[share].free.is_empty(), "{share}: {:?}", self.shares[share].free);
                continue;
            };
            let found = read_in_flight(partition, &[request.id]).await.expect("a look").remove(0);
            let (held, _) = found.expect("it can be read").expect("it is in flight");
            let unit = held.unit.expect("it has a unit");
            assert!(self.shares[share].free.remove(&unit), "{unit:?} was not free in {share}");
            let decision = Decision {
                id: request.id,
                coupon: request.coupon,
                user: request.user,
                outcome: Outcome::Issued { unit, nth: 1 },
                accepted_at: queued.accepted_at,
                decided_at: queued.accepted_at,
            };
            self.in_flight.insert(request.id, Flight { share, entry: held.entry, of: 1, decision, unit });
        }
    }

    async fn lends(&mut self) {
        let donor = self.any_share();
        let to = (donor + self.rng.random_range(1..SHARES as usize)) % SHARES as usize;
        let entries = if self.rng.random() { QueueEntries::OfMany } else { QueueEntries::OfOne };
        let lent = lend(self.partition(donor), &self.coupon.id, self.partition_id(to), entries).await;
        let lent = lent.expect("an answer");
        assert_eq!(lent.len(), self.shares[donor].free.len().div_ceil(2).min(256), "half of what is free");
        for lent in lent {
            let Outcome::Moved { unit, .. } = lent.decision.outcome else { panic!("{lent:?}") };
            assert!(self.shares[donor].free.remove(&unit), "{unit:?} was not free in {donor}");
            let (share, of, entry) = (donor, lent.of, lent.entry);
            self.in_flight
                .insert(lent.decision.id, Flight { share, entry, of, decision: lent.decision, unit });
        }
    }

    /// The ledger takes a move.
    fn commits(&mut self) {
        let is_new = |flight: &&Flight| {
            flight.decision.user.share().is_some() && !self.moved.contains(&flight.decision)
        };
        if let Some(flight) = self.in_flight.values().filter(is_new).choose(&mut self.rng) {
            self.moved.push(flight.decision.clone());
        }
    }

    /// A share is credited with moves of any age, some of them once more.
    async fn credits(&mut self) {
        let count = self.rng.random_range(0..=self.moved.len());
        let moves: Vec<Decision> = self.moved.iter().cloned().sample(&mut self.rng, count);
        credit_moved(&self.system.backends.partitions, &moves).await;
        for moved in moves {
            let Outcome::Moved { unit, to } = moved.outcome else { continue };
            let place = self.place(to);
            let share = &mut self.shares[place];
            if share.credited.insert(moved.id) {
                share.free.insert(unit.moved().expect("it has hops left"));
                share.gains += 1;
            }
        }
    }

    /// Something in flight is decided, and settled twice. A move that the ledger has is settled as one.
    async fn settles(&mut self) {
        let Some(flight) = self.in_flight.values().choose(&mut self.rng).cloned() else { return };
        let Flight { share, entry, of, mut decision, unit } = flight;
        let is_move = decision.user.share().is_some();
        let is_kept = if is_move { self.moved.contains(&decision) } else { self.rng.random() };
        if !is_kept {
            decision.outcome = Outcome::Rejected { reason: Reason::Discarded, unit: Some(unit), lost: false };
        }
        let id = decision.id;
        let settlement = Settlement { entry, of, decision, holds: Vec::new() };
        let (partition, keys) = (self.partition(share), self.partition(share).keys());
        for answer in [Settled::Now, Settled::GuardedOff] {
            let settled = settle(partition, &keys, std::slice::from_ref(&settlement)).await;
            assert_eq!(settled.expect("an answer"), [answer]);
        }
        self.in_flight.remove(&id);
        let model = &mut self.shares[share];
        match (is_kept, is_move) {
            (true, true) => {}
            (true, false) => model.issued += 1,
            (false, _) => {
                model.free.insert(unit);
                model.gains += 1;
            }
        }
        // The others of an entry of many have entries of their own by now.
        let others: Vec<IssuanceId> = self
            .in_flight
            .iter()
            .filter(|(_, other)| other.entry == settlement.entry)
            .map(|(id, _)| *id)
            .collect();
        for found in others {
            let held = read_in_flight(partition, &[found]).await.expect("a look").remove(0);
            let (held, _) = held.expect("it can be read").expect("it is in flight");
            let other = self.in_flight.get_mut(&found).expect("it is in flight");
            (other.entry, other.of) = (held.entry, 1);
        }
    }

    async fn restocks(&mut self) {
        let before = self.coupon.total;
        self.coupon.total += self.rng.random_range(1..5);
        self.coupon.generation += 1;
        let service = ServiceStore::new(&self.system.backends.database).get().await.expect("the service");
        for share in 0..SHARES as usize {
            let coupons = std::slice::from_ref(&self.coupon);
            admin_sync::apply(self.partition(share), service, coupons).await.expect("it is applied");
            self.shares[share].free.extend(born(share, before + 1, self.coupon.total));
            self.shares[share].gains += 1;
        }
    }

    /// Every share shows what the model has, and whether it gained anything since the last look.
    async fn agrees(&mut self) {
        let shares: Shares = self.coupon.shares.clone();
        let looks = look(&self.system.backends.partitions, &self.coupon.id, &shares).await;
        for (place, looked) in looks.into_iter().enumerate() {
            let Looked::Seen(sight) = looked else { panic!("{place}: {looked:?}") };
            let model = &self.shares[place];
            let of_share = self.in_flight.values().filter(|flight| flight.share == place);
            let lending = of_share.clone().filter(|flight| flight.decision.user.share().is_some()).count();
            let seen = (sight.free, sight.lending, sight.credited);
            let wanted = (model.free.len() as u64, lending as u64, model.credited.len() as u64);
            assert_eq!(seen, wanted, "free, lending, credited of share {place}");
            if let Some((before, gains)) = &self.looked[place] {
                let gained_nothing = before.gained_nothing_until(&sight);
                assert!(!gained_nothing || *gains == model.gains, "share {place} gained something unseen");
            }
            let coupon = std::slice::from_ref(&self.coupon.id);
            let (_, mut stocks) = stock::read(self.partition(place), coupon).await.expect("the stock");
            let stock = stocks.remove(0).expect("it can be read").expect("it is loaded");
            let wanted = (model.free.len() as u32, of_share.count() as u32, model.issued);
            assert_eq!((stock.remaining, stock.reserved, stock.issued), wanted, "the stock of share {place}");
            self.looked[place] = Some((sight, model.gains));
        }
        // Each serial is in one place.
        let free = self.shares.iter().flat_map(|share| &share.free).map(|unit| unit.serial());
        let in_flight = self.in_flight.values().filter(|flight| !self.moved.contains(&flight.decision));
        let on_its_way = self.moved.iter().filter_map(|moved| match moved.outcome {
            Outcome::Moved { unit, to } if !self.shares[self.place(to)].credited.contains(&moved.id) => {
                Some(unit.serial())
            }
            _ => None,
        });
        let mut serials: Vec<u32> =
            free.chain(in_flight.map(|flight| flight.unit.serial())).chain(on_its_way).collect();
        serials.sort_unstable();
        let issued: u32 = self.shares.iter().map(|share| share.issued).sum();
        assert!(serials.is_sorted_by(|one, other| one < other), "a serial is in two places: {serials:?}");
        assert_eq!(serials.len() as u32 + issued, self.coupon.total);
    }
}

/// The units that are born in a share, from one serial to another.
fn born(share: usize, from: u32, to: u32) -> BTreeSet<Unit> {
    let here = (from..=to).filter(|serial| (serial - 1) % SHARES == share as u32);
    here.filter_map(Unit::native).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scripts_do_what_the_model_does_in_any_order() {
    let mut seeds = chance();
    for round in 0..rounds(2) {
        let system = start().await;
        system.leaves_in_flight();
        let rng: StdRng = rand::SeedableRng::seed_from_u64(seeds.random());
        let total = seeds.random_range(0..40);
        let mut model = Model::start(&system, rng, total).await;
        for _ in 0..STEPS {
            match model.rng.random_range(0..12) {
                0..3 => model.reserves().await,
                3..5 => model.lends().await,
                5..7 => model.commits(),
                7..9 => model.credits().await,
                9..11 => model.settles().await,
                _ => model.restocks().await,
            }
            model.agrees().await;
        }
        println!("round {round}: {} units, {} moves", model.coupon.total, model.moved.len());
    }
}
