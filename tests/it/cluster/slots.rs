//! The client finds the node of each slot.

use coupon_system::redis::RedisNodes;
use redis::cmd;

use crate::helpers::cluster;

/// Writes a key of each tag, and reads it from the node where the slot lies.
async fn each_tag_is_served(nodes: &std::sync::Arc<RedisNodes>) {
    for tag in 0..32 {
        let client = nodes.client_of(&tag.to_string());
        let mut connection = client.connection();
        let key = format!("key:{{{tag}}}");
        let () = cmd("SET").arg(&key).arg(tag).query_async(&mut connection).await.expect("it is written");
        let read: u32 = cmd("GET").arg(&key).query_async(&mut connection).await.expect("it is read");
        assert_eq!(read, tag);
    }
}

#[tokio::test]
async fn every_tag_is_served_by_the_node_of_its_slot_whichever_address_the_url_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = cluster(&folder, 0).await;
    each_tag_is_served(&RedisNodes::open(&cluster.url()).expect("a URL")).await;
    // Two that do not answer, and one that does.
    let some = format!("redis+cluster://127.0.0.1:1,127.0.0.1:2,127.0.0.1:{}", cluster.nodes[1].port());
    each_tag_is_served(&RedisNodes::open(&some).expect("a URL")).await;
    // A node of a cluster, given as if it were a server on its own.
    let one = RedisNodes::open(&cluster.nodes[0].url()).expect("a URL");
    assert!(!one.is_cluster(), "nobody has said so");
    each_tag_is_served(&one).await;
    assert!(one.is_cluster(), "an answer has said so");
}
