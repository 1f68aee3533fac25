//! Filtered lists have full pages.

use serde_json::Value;

use crate::helpers::{System, at};

fn ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().map(|item| item["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn a_page_of_coupons_of_one_status_is_full_though_most_have_another() {
    let system = System::start().await;
    for id in ["sold-1", "sold-2", "sold-3", "sold-4"] {
        let coupon = system.coupon(id, 1, 1).await;
        system.accepted("u0", &coupon).await;
    }
    for number in 0..100 {
        system.coupon_record(&format!("open-{number}"), 1, 1, at(-60), at(3600)).await;
    }
    let full = system.client.get("/coupons?status=soldOut&limit=3").await;
    assert_eq!(ids(&full.body), ["sold-4", "sold-3", "sold-2"], "{:?}", full.body);
    let next = full.body["nextCursor"].as_str().expect("a cursor");
    let rest = system.client.get(&format!("/coupons?status=soldOut&limit=3&cursor={next}")).await;
    assert_eq!((ids(&rest.body), &rest.body["nextCursor"]), (vec!["sold-1"], &Value::Null));

    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = system.client.get(&format!("/coupons?status=open&limit=7{cursor}")).await;
        seen.extend(ids(&page.body).into_iter().map(str::to_owned));
        match page.body["nextCursor"].as_str() {
            Some(next) => {
                assert_eq!(ids(&page.body).len(), 7, "only the last page has fewer");
                cursor = format!("&cursor={next}");
            }
            None => break,
        }
    }
    let expected: Vec<String> = (0..100).rev().map(|number| format!("open-{number}")).collect();
    seen.sort_by_key(|id| std::cmp::Reverse(id["open-".len()..].parse::<u32>().expect("a number")));
    assert_eq!(seen, expected);
    let none = system.client.get("/coupons?status=archived&limit=3").await;
    assert_eq!((ids(&none.body).len(), &none.body["nextCursor"]), (0, &Value::Null));
}
