//! The tests' own support, tested: a verifier that finds nothing must be one that would.

mod support;

use std::time::Duration;

use support::shop::{self, Load, Size};
use support::{Difference, Services, TablePair, compare};

#[tokio::test(flavor = "multi_thread")]
async fn a_difference_in_any_row_or_column_is_found() {
    let services = Services::from_env();
    let source = services.catalog.create_database("differences").await.unwrap();
    let sink = services.orders.create_database("differences").await.unwrap();
    let table = "CREATE TABLE public.t (k int, l text, v text, n numeric, PRIMARY KEY (k, l))";
    for database in [&source, &sink] {
        database.execute(table).await.unwrap();
        let rows = "INSERT INTO public.t SELECT i, chr(64 + i), repeat('x', i), i / 3.0 FROM generate_series(1, 60) i";
        database.execute(rows).await.unwrap();
    }
    let pair = TablePair::same("public.t", &["k", "l"]);
    let equal = compare(&source, &sink, &pair).await.unwrap();
    assert!(equal.is_equal() && equal.rows == 60, "{equal}");

    sink.execute(
        "DELETE FROM public.t WHERE k = 1; INSERT INTO public.t VALUES (100, 'z', '', 0);
         UPDATE public.t SET v = NULL, n = 1.0 WHERE k = 2",
    )
    .await
    .unwrap();
    let found = compare(&source, &sink, &pair).await.unwrap();
    let keys: Vec<&str> = found.differences.iter().map(kind).collect();
    assert_eq!(keys, ["only at source", "only at sink", "columns"], "{found}");
    assert_eq!(found.differences_count, 3);
}

fn kind(difference: &Difference) -> &'static str {
    match difference {
        Difference::OnlyAtSource { .. } => "only at source",
        Difference::OnlyAtSink { .. } => "only at sink",
        Difference::Columns { .. } => "columns",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_load_does_everything_it_says() {
    let services = Services::from_env();
    let source = services.catalog.create_database("load").await.unwrap();
    shop::create_source(&source).await.unwrap();
    let rows = shop::seed(&source, Size::SMALL, 1).await.unwrap();
    assert_eq!(shop::rows(&source).await.unwrap(), rows);
    let load = Load { seed: 1, writers: 3, transactions_per_second: 200, truncate_after: Some(Duration::from_secs(1)) };
    let running = load.start(&source).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let report = running.stop().await.unwrap();
    assert_eq!(report.transactions.len(), 13, "every kind occurs: {report:?}");
    assert!(report.conflicts < report.committed() / 10, "{report:?}");
}
