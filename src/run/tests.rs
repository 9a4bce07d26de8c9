//! The supervisor with small real roles: what they end with, and what becomes of the process.

use super::*;
use crate::error::Code;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;

const QUICK: Limits = Limits {
    retry_min: Duration::from_millis(5),
    retry_max: Duration::from_millis(20),
    stays: 3,
    drain: Duration::from_millis(600),
    source_drain: Duration::from_millis(200),
    nothing_moves: Duration::from_millis(500),
};

fn halt(code: Code) -> Error {
    Error::halt(code, "found something", "type this")
}

/// A source that streams until it is stopped, then tells that it has drained.
fn streaming_source(metrics: &Metrics, log: mpsc::Sender<&'static str>) -> Role {
    Role::source(metrics, move |reporter, _, token| {
        let log = log.clone();
        async move {
            reporter.moving(State::Streaming);
            token.cancelled().await;
            sleep(Duration::from_millis(50)).await;
            log.send("source drained").unwrap();
            Ok(())
        }
    })
}

fn streaming_sink(metrics: &Metrics, name: &'static str, log: mpsc::Sender<&'static str>) -> Role {
    Role::sink(name, metrics, move |reporter, _, token| {
        let log = log.clone();
        async move {
            reporter.moving(State::Streaming);
            token.cancelled().await;
            log.send(name).unwrap();
            Ok(())
        }
    })
}

fn halting_sink(metrics: &Metrics, name: &str, code: Code) -> Role {
    Role::sink(name, metrics, move |_, _, _| async move { Err(halt(code)) })
}

async fn run(roles: Vec<Role>, metrics: Metrics, stop_after: Duration) -> (Exit, Duration) {
    let (shutdown, begun) = (CancellationToken::new(), Instant::now());
    let stop = shutdown.clone();
    let stopper = tokio::spawn(async move {
        sleep(stop_after).await;
        stop.cancel();
    });
    let exit = supervise("shop", roles, metrics, None, QUICK, shutdown).await;
    stopper.abort();
    (exit, begun.elapsed())
}

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_stop_drains_the_source_before_the_sinks() {
    let (metrics, (log, order)) = (Metrics::new(), mpsc::channel());
    let roles = vec![
        streaming_sink(&metrics, "orders", log.clone()),
        streaming_source(&metrics, log.clone()),
        streaming_sink(&metrics, "stock", log.clone()),
    ];
    let (exit, _) = run(roles, metrics, Duration::from_millis(50)).await;
    drop(log);
    assert_eq!(exit, Exit::Drained);
    let order: Vec<_> = order.iter().collect();
    assert_eq!((order[0], order.len()), ("source drained", 3));
}

#[tokio::test]
async fn a_retry_starts_the_role_again_and_a_halt_stops_it_alone() {
    let (metrics, (log, _order)) = (Metrics::new(), mpsc::channel());
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    let flaky = Role::sink("flaky", &metrics, move |reporter, _, token| {
        let attempt = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            if attempt < 3 {
                return Err(Error::retry("connecting to the sink", "connection refused"));
            }
            reporter.moving(State::Streaming);
            token.cancelled().await;
            Ok(())
        }
    });
    let roles = vec![flaky, halting_sink(&metrics, "broken", Code::TopicGap), streaming_source(&metrics, log)];
    let board = board("shop", &roles);
    let watched = board.clone();
    let look = tokio::spawn(async move {
        sleep(Duration::from_millis(300)).await;
        watched.status()
    });
    let (exit, _) = run(roles, metrics.clone(), Duration::from_millis(400)).await;
    assert_eq!(exit, Exit::Drained, "a halted sink does not change how a stop ends");
    let status = look.await.unwrap();
    assert_eq!(status["sinks"]["flaky"]["state"], "streaming");
    assert_eq!(status["sinks"]["flaky"]["waiting_for"], serde_json::Value::Null);
    assert_eq!(status["sinks"]["broken"]["halt"]["code"], "TOPIC_GAP");
    assert_eq!(status["source"]["state"], "streaming");
    assert_eq!(attempts.load(Ordering::SeqCst), 4);
    let text = metrics.render(&board);
    assert!(text.contains("lockstep_sink_retries_total{sink=\"flaky\"} 3"), "{text}");
    assert!(text.contains("lockstep_sink_halted{sink=\"broken\"} 1"), "{text}");
    assert!(text.contains("lockstep_sink_breaker_openings_total{sink=\"flaky\"} 1"), "{text}");
}

#[tokio::test]
async fn while_it_retries_a_role_says_why() {
    let metrics = Metrics::new();
    let role =
        Role::source(&metrics, |_, _, _| async { Err(Error::retry("connecting to the source", "connection refused")) });
    let roles = vec![role];
    let board = board("shop", &roles);
    let (exit, _) = run(roles, metrics, Duration::from_millis(100)).await;
    assert_eq!(exit, Exit::Drained);
    assert_eq!(board.status()["source"]["waiting_for"], "connecting to the source: connection refused");
}

#[tokio::test]
async fn a_failure_that_stays_is_a_halt_in_the_end() {
    let metrics = Metrics::new();
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    // The third attempt fails otherwise: what failed alike before it does not count.
    let role = Role::source(&metrics, move |_, _, _| {
        let attempt = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let Error::Halt(stays) = halt(Code::SourceUndecodable) else { unreachable!() };
            let error = Error::retry_plain("streaming");
            Err(if attempt == 2 { error } else { error.if_it_stays(*stays) })
        }
    });
    let (exit, _) = run(vec![role], metrics, LONG).await;
    assert_eq!((exit, attempts.load(Ordering::SeqCst)), (Exit::Halted, 6));
}

#[tokio::test]
async fn a_role_that_ends_unasked_is_started_again() {
    let metrics = Metrics::new();
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    let role = Role::sink("orders", &metrics, move |_, _, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    });
    run(vec![role], metrics, Duration::from_millis(200)).await;
    assert!(attempts.load(Ordering::SeqCst) > 1);
}

#[tokio::test]
async fn three_when_every_role_is_halted() {
    let metrics = Metrics::new();
    let source = Role::source(&metrics, |_, _, _| async { Err(halt(Code::SlotLost)) });
    let roles = vec![source, halting_sink(&metrics, "orders", Code::TopicGap)];
    let (exit, took) = run(roles, metrics, LONG).await;
    assert_eq!(exit, Exit::Halted);
    assert!(took < QUICK.nothing_moves, "all halted needs no waiting");
}

#[tokio::test]
async fn three_when_the_source_halts_first_and_no_sink_ever_moves() {
    let metrics = Metrics::new();
    let source = Role::source(&metrics, |_, _, _| async { Err(halt(Code::WalLevel)) });
    let waiting = Role::sink("orders", &metrics, |_, _, token| async move {
        token.cancelled().await;
        Ok(())
    });
    let (exit, took) = run(vec![source, waiting], metrics, LONG).await;
    assert_eq!(exit, Exit::Halted);
    assert!(took >= QUICK.nothing_moves);
}

#[tokio::test]
async fn a_sink_that_moves_keeps_the_process_when_the_source_is_halted() {
    let (metrics, (log, _order)) = (Metrics::new(), mpsc::channel());
    let source = Role::source(&metrics, |_, _, _| async { Err(halt(Code::WalLevel)) });
    let roles = vec![source, streaming_sink(&metrics, "orders", log)];
    let (exit, took) = run(roles, metrics, QUICK.nothing_moves * 2).await;
    assert_eq!(exit, Exit::Drained);
    assert!(took >= QUICK.nothing_moves * 2);
}

#[tokio::test]
async fn a_halted_source_keeps_the_process_only_while_a_sink_has_a_backlog() {
    for (lag, ended) in [(Some(7), Exit::Drained), (Some(0), Exit::Halted)] {
        let metrics = Metrics::new();
        let source = Role::source(&metrics, |reporter, _, _| async move {
            reporter.moving(State::Streaming);
            sleep(Duration::from_millis(20)).await;
            Err(halt(Code::SlotLost))
        });
        let sink = Role::sink("orders", &metrics, move |reporter, _, token| async move {
            reporter.update(|s| (s.state, s.lag_bytes) = (State::Streaming, lag));
            token.cancelled().await;
            Ok(())
        });
        let (exit, took) = run(vec![source, sink], metrics, QUICK.nothing_moves * 2).await;
        assert_eq!(exit, ended);
        assert!(took >= QUICK.nothing_moves);
    }
}

#[tokio::test]
async fn a_role_that_does_not_stop_costs_the_deadline_and_exit_one() {
    let (metrics, (log, order)) = (Metrics::new(), mpsc::channel());
    let stubborn = Role::source(&metrics, |reporter, _, _| async move {
        reporter.moving(State::Streaming);
        std::future::pending().await
    });
    let roles = vec![stubborn, streaming_sink(&metrics, "orders", log)];
    let (exit, took) = run(roles, metrics, Duration::from_millis(50)).await;
    assert_eq!(exit, Exit::Failed);
    assert!(took >= QUICK.drain && took < QUICK.drain * 4, "{took:?}");
    assert_eq!(order.iter().next(), Some("orders"), "the sinks are drained all the same");
}

#[tokio::test]
async fn a_panic_ends_the_process_with_one_at_once() {
    let (metrics, (log, _order)) = (Metrics::new(), mpsc::channel());
    let broken = Role::source(&metrics, |_, _, _| async { panic!("a bug, on purpose") });
    let roles = vec![broken, streaming_sink(&metrics, "orders", log)];
    let (exit, took) = run(roles, metrics, LONG).await;
    assert_eq!(exit, Exit::Failed);
    assert!(took < QUICK.drain, "{took:?}");
}

#[tokio::test]
async fn http_answers_until_the_roles_are_done() {
    let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
    let listener = crate::http::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let slow = Role::sink("orders", &metrics, move |reporter, _, token| async move {
        reporter.moving(State::Streaming);
        token.cancelled().await;
        // Asks its own process, while it drains.
        let text = crate::http::client::get(&format!("http://{address}/status"), Duration::from_secs(5)).await;
        assert!(text.expect("HTTP still answers").body.contains("shop"));
        Ok(())
    });
    let stop = shutdown.clone();
    let stopper = tokio::spawn(async move {
        sleep(Duration::from_millis(50)).await;
        stop.cancel();
    });
    let exit = supervise("shop", vec![slow], metrics, Some(listener), QUICK, shutdown).await;
    stopper.await.unwrap();
    assert_eq!(exit, Exit::Drained);
    assert!(crate::http::tests::freed(address).await, "the port is free again");
}

#[test]
fn role_names_parse_as_they_print() {
    for text in ["source", "sink:orders", "sink:a:b"] {
        assert_eq!(text.parse::<RoleName>().unwrap().to_string(), text);
    }
    for text in ["", "sink", "sink:", "sources", "source:x"] {
        assert!(text.parse::<RoleName>().is_err(), "{text}");
    }
}

/// Fails four times; `closed` is what it has applied in each attempt.
async fn failing(closed: [u64; 4]) -> serde_json::Value {
    let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
    let (attempts, stop) = (Arc::new(AtomicU32::new(0)), shutdown.clone());
    let role = Role::sink("orders", &metrics, move |reporter, _, token| {
        let (attempt, stop) = (attempts.fetch_add(1, Ordering::SeqCst) as usize, stop.clone());
        async move {
            let Some(closed) = closed.get(attempt) else {
                stop.cancel();
                token.cancelled().await;
                return Ok(());
            };
            reporter.update(|s| (s.state, s.closed_lsn) = (State::Streaming, Some(Lsn(*closed))));
            Err(Error::retry("applying", format!("attempt {attempt}")))
        }
    });
    let roles = vec![role];
    let board = board("shop", &roles);
    assert_eq!(supervise("shop", roles, metrics, None, QUICK, shutdown).await, Exit::Drained);
    board.status()["sinks"]["orders"]["retry"].clone()
}

#[tokio::test]
async fn pauses_begin_anew_after_progress_and_only_then() {
    let stuck = failing([7, 7, 7, 7]).await;
    assert_eq!((&stuck["failures"], &stuck["error"]), (&4.into(), &"applying: attempt 3".into()), "{stuck}");
    assert!(stuck["next_try"].as_str().unwrap().parse::<Timestamp>().is_ok());
    let moving = failing([7, 7, 7, 8]).await;
    assert_eq!((&moving["failures"], &moving["error"]), (&1.into(), &"applying: attempt 3".into()), "{moving}");
}

#[tokio::test]
async fn progress_takes_the_last_failure_out_of_the_status() {
    let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
    let (attempts, stop) = (Arc::new(AtomicU32::new(0)), shutdown.clone());
    let role = Role::source(&metrics, move |reporter, _, token| {
        let (attempt, stop) = (attempts.fetch_add(1, Ordering::SeqCst), stop.clone());
        async move {
            reporter.update(|s| (s.state, s.position) = (State::Streaming, Some(Lsn(u64::from(attempt) + 1))));
            if attempt == 0 {
                return Err(Error::retry_plain("failed once"));
            }
            stop.cancel();
            token.cancelled().await;
            Ok(())
        }
    });
    let roles = vec![role];
    let board = board("shop", &roles);
    assert_eq!(supervise("shop", roles, metrics, None, QUICK, shutdown).await, Exit::Drained);
    assert_eq!(board.status()["source"]["retry"], serde_json::Value::Null);
}

/// Three failures, and then an attempt that only comes up; what its status and its metrics say.
#[tokio::test]
async fn the_attempt_after_an_outage_is_a_probe_until_it_has_shown_something() {
    let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
    let (attempts, stop) = (Arc::new(AtomicU32::new(0)), shutdown.clone());
    let role = Role::sink("orders", &metrics, move |reporter, _, token| {
        let (attempt, stop) = (attempts.fetch_add(1, Ordering::SeqCst), stop.clone());
        async move {
            if attempt < 3 {
                return Err(Error::retry("connecting to orders", "connection refused"));
            }
            reporter.moving(State::Streaming);
            sleep(Duration::from_millis(100)).await;
            stop.cancel();
            token.cancelled().await;
            Ok(())
        }
    });
    let roles = vec![role];
    let board = board("shop", &roles);
    assert_eq!(supervise("shop", roles, metrics.clone(), None, QUICK, shutdown).await, Exit::Drained);
    let retry = board.status()["sinks"]["orders"]["retry"].clone();
    assert_eq!((&retry["breaker"], &retry["failures"]), (&"half_open".into(), &3.into()), "{retry}");
    let since: Timestamp = retry["since"].as_str().unwrap().parse().unwrap();
    assert!(since < retry["next_try"].as_str().unwrap().parse().unwrap(), "{retry}");
    let text = metrics.render(&board);
    assert!(text.contains("lockstep_sink_breaker_open{sink=\"orders\"} 1"), "{text}");
}

/// What a sink says again and again, for long enough: level, or behind.
#[tokio::test]
async fn a_probe_has_shown_enough_once_it_had_nothing_to_do_for_a_while() {
    for (lag, over) in [(0, true), (7, false)] {
        let (metrics, shutdown) = (Metrics::new(), CancellationToken::new());
        let (attempts, stop) = (Arc::new(AtomicU32::new(0)), shutdown.clone());
        let role = Role::sink("orders", &metrics, move |reporter, _, token| {
            let (attempt, stop) = (attempts.fetch_add(1, Ordering::SeqCst), stop.clone());
            async move {
                if attempt < 3 {
                    return Err(Error::retry_plain("out of order"));
                }
                // The supervisor looks once a second.
                for _ in 0..22 {
                    reporter.update(|s| (s.state, s.lag_bytes) = (State::Streaming, Some(lag)));
                    sleep(Duration::from_millis(100)).await;
                }
                stop.cancel();
                token.cancelled().await;
                Ok(())
            }
        });
        let roles = vec![role];
        let board = board("shop", &roles);
        assert_eq!(supervise("shop", roles, metrics, None, QUICK, shutdown).await, Exit::Drained);
        assert_eq!(board.status()["sinks"]["orders"]["retry"].is_null(), over, "{lag}");
    }
}

/// A password that was never taken halts; one that was is waited for.
#[tokio::test]
async fn a_password_that_was_taken_before_is_waited_for() {
    for (closed, state) in [(None, "halted"), (Some(Lsn(7)), "streaming")] {
        let metrics = Metrics::new();
        let attempts = Arc::new(AtomicU32::new(0));
        let role = Role::sink("orders", &metrics, move |reporter, _, token| {
            let attempt = attempts.fetch_add(1, Ordering::SeqCst);
            async move {
                reporter.update(|s| (s.state, s.closed_lsn) = (State::Streaming, closed));
                if attempt == 0 {
                    return Err(halt(Code::AuthFailed));
                }
                token.cancelled().await;
                Ok(())
            }
        });
        let (log, _order) = mpsc::channel();
        let roles = vec![role, streaming_sink(&metrics, "stock", log)];
        let board = board("shop", &roles);
        let (shutdown, watched) = (CancellationToken::new(), board.clone());
        let stop = shutdown.clone();
        let look = tokio::spawn(async move {
            sleep(Duration::from_millis(200)).await;
            stop.cancel();
            watched.status()
        });
        supervise("shop", roles, metrics, None, QUICK, shutdown).await;
        let status = look.await.unwrap();
        assert_eq!(status["sinks"]["orders"]["state"], state, "{status}");
        let error = status["sinks"]["orders"]["retry"]["error"].as_str().unwrap_or_default();
        assert_eq!(error.contains("found something; this password was taken before"), closed.is_some(), "{status}");
    }
}
