//! Which node of a cluster each slot lies on.

use std::sync::Arc;

use redis::{ConnectionAddr, Value, from_redis_value_ref};

use super::node::RedisNode;
use crate::ids::SLOTS;

/// Stands for no node.
const NOWHERE: u16 = u16::MAX;

/// The primaries that are known, and the slots that each of them serves.
#[derive(Clone)]
pub(super) struct SlotMap {
    /// Whether they form a cluster; otherwise there is at most one, which serves everything.
    pub is_cluster: bool,
    pub nodes: Vec<Arc<RedisNode>>,
    /// For each slot the place of its node, or [`NOWHERE`]; empty if it is always the first.
    places: Vec<u16>,
}

impl SlotMap {
    /// Nothing is known yet.
    pub(super) fn unknown(is_cluster: bool) -> Self {
        SlotMap { is_cluster, nodes: Vec::new(), places: Vec::new() }
    }

    /// One server, which is not of a cluster.
    pub(super) fn of_one(node: Arc<RedisNode>) -> Self {
        SlotMap { is_cluster: false, nodes: vec![node], places: Vec::new() }
    }

    /// The same nodes and slots, of a cluster.
    pub(super) fn as_cluster(&self) -> Self {
        SlotMap { is_cluster: true, ..self.clone() }
    }

    /// The node that serves a slot, if one is known.
    pub(super) fn node(&self, slot: u16) -> Option<&Arc<RedisNode>> {
        let place = if self.places.is_empty() { 0 } else { self.places[usize::from(slot)] };
        self.nodes.get(usize::from(place))
    }

    /// The node at this address, if it is known.
    pub(super) fn at(&self, address: &ConnectionAddr) -> Option<&Arc<RedisNode>> {
        self.nodes.iter().find(|node| node.address() == address)
    }

    /// A cluster with these ranges of slots, the last slot included.
    pub(super) fn of_ranges(ranges: impl IntoIterator<Item = (u16, u16, Arc<RedisNode>)>) -> Self {
        let mut map = SlotMap { places: vec![NOWHERE; usize::from(SLOTS)], ..Self::unknown(true) };
        for (first, last, node) in ranges {
            map.put(first, last, node);
        }
        map
    }

    /// The same, but for one slot, which lies on this node.
    pub(super) fn with_moved(&self, slot: u16, node: Arc<RedisNode>) -> Self {
        let places = if self.places.is_empty() { vec![0; usize::from(SLOTS)] } else { self.places.clone() };
        let mut map = SlotMap { is_cluster: true, nodes: self.nodes.clone(), places };
        map.put(slot, slot, node);
        map
    }

    fn put(&mut self, first: u16, last: u16, node: Arc<RedisNode>) {
        let place = self.nodes.iter().position(|known| Arc::ptr_eq(known, &node)).unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        });
        if let (Ok(place), true) = (u16::try_from(place), first <= last && last < SLOTS) {
            self.places[usize::from(first)..=usize::from(last)].fill(place);
        }
    }
}

impl PartialEq for SlotMap {
    fn eq(&self, other: &Self) -> bool {
        let same_nodes = self.nodes.len() == other.nodes.len()
            && self.nodes.iter().zip(&other.nodes).all(|(one, another)| Arc::ptr_eq(one, another));
        same_nodes && self.is_cluster == other.is_cluster && self.places == other.places
    }
}

/// A range of slots, the last included, and where its primary is: a host, unless that is where the answer came from,
/// and a port.
pub(crate) type SlotRange = (u16, u16, Option<String>, u16);

/// Reads the answer to CLUSTER SLOTS. A range whose primary is not told is left out.
pub(crate) fn read_ranges(answer: &Value) -> Vec<SlotRange> {
    let Value::Array(ranges) = answer else { return Vec::new() };
    ranges.iter().filter_map(read_range).collect()
}

fn read_range(range: &Value) -> Option<SlotRange> {
    let Value::Array(range) = range else { return None };
    let [first, last, Value::Array(primary), ..] = range.as_slice() else { return None };
    let [host, port, ..] = primary.as_slice() else { return None };
    let host: Option<String> = from_redis_value_ref(host).ok()?;
    let host = host.filter(|host| !host.is_empty());
    // A node that does not know its own name.
    if host.as_deref() == Some("?") {
        return None;
    }
    let number = |value| from_redis_value_ref::<u16>(value).ok();
    Some((number(first)?, number(last)?, host, number(port)?))
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo;

    use super::*;
    use crate::ids::{slot_of, tag_in_part};

    fn node(port: u16) -> Arc<RedisNode> {
        RedisNode::open(("a", port).into_connection_info().expect("an address"), None).expect("a node")
    }

    #[test]
    fn a_tag_has_the_slot_that_redis_gives_it() {
        // From CLUSTER KEYSLOT.
        for (tag, slot) in [("123456789", 12_739), ("0", 13_907), ("foo", 12_182), ("", 0)] {
            assert_eq!(slot_of(tag), slot, "{tag}");
        }
    }

    #[test]
    fn tags_are_spread_evenly_over_the_slots() {
        for count in [1, 16, 64] {
            for number in 0..count {
                let slot = slot_of(&tag_in_part(&format!("limit{number}"), number, count));
                assert_eq!(u32::from(slot) * u32::from(count) / u32::from(SLOTS), u32::from(number));
            }
        }
    }

    #[tokio::test]
    async fn a_slot_lies_on_the_node_of_its_range_or_where_it_moved_or_nowhere() {
        let (one, two) = (node(1), node(2));
        let map = SlotMap::of_ranges([(0, 99, Arc::clone(&one)), (100, 16_383, Arc::clone(&two))]);
        let is_on = |map: &SlotMap, slot, node: &Arc<RedisNode>| {
            map.node(slot).is_some_and(|found| Arc::ptr_eq(found, node))
        };
        assert!(is_on(&map, 99, &one) && is_on(&map, 100, &two) && is_on(&map, 16_383, &two));
        let moved = map.with_moved(99, Arc::clone(&two));
        assert!(is_on(&moved, 98, &one) && is_on(&moved, 99, &two) && moved != map);
        let half = SlotMap::of_ranges([(0, 99, Arc::clone(&one)), (100, 16_384, two)]);
        assert!(
            half.node(100).is_none() && is_on(&half, 99, &one),
            "a range that there cannot be is left out"
        );
        let alone = SlotMap::of_one(Arc::clone(&one));
        assert!(is_on(&alone, 16_383, &one));
        let found_out = alone.with_moved(7, node(3));
        assert!(found_out.is_cluster && is_on(&found_out, 6, &one) && !is_on(&found_out, 7, &one));
    }

    #[test]
    fn ranges_are_read_and_those_without_a_primary_are_left_out() {
        let text = |text: &str| Value::BulkString(text.into());
        let range = |first, last, host, port| {
            let primary = Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(Vec::new())]);
            Value::Array(vec![Value::Int(first), Value::Int(last), primary, Value::Array(Vec::new())])
        };
        let answer = Value::Array(vec![
            range(0, 5_460, text("10.0.0.1"), 6_379),
            range(5_461, 5_461, Value::Nil, 6_380),
            range(5_462, 6_000, text(""), 6_380),
            range(6_001, 7_000, text("?"), 6_381),
            Value::Array(vec![Value::Int(7_001)]),
        ]);
        let expected = vec![
            (0, 5_460, Some("10.0.0.1".to_owned()), 6_379),
            (5_461, 5_461, None, 6_380),
            (5_462, 6_000, None, 6_380),
        ];
        assert_eq!(read_ranges(&answer), expected);
        assert_eq!(read_ranges(&Value::Nil), []);
    }
}
