//! A refresh asks the origin whatever there is, and publishes its answer over that.

mod common;

use std::time::Duration;

use common::*;
use objmapper_records::{MissReason, Outcome};

#[test]
fn it_replaces_what_is_there() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    for lines in [&[][..], &["Vary: X"]] {
        let r = req(&format!("/{}", lines.len())).with("X", "1");
        let other = req(&format!("/{}", lines.len())).with("X", "2");
        // Absent, a fresh record, and a second time.
        for round in ["one", "two", "three"] {
            let Got::Miss(miss) = a.refresh(&r) else { panic!() };
            assert_eq!(miss.why, MissReason::Refresh);
            if round == "two" && !lines.is_empty() {
                b.put(&other, head(60.0, lines), b"other");
            }
            assert_eq!(a.publish(miss.ticket.unwrap(), &r, head(60.0, lines), round.as_bytes()), Outcome::Published);
            assert_eq!(b.get(&r).body(), round.as_bytes());
        }
        if !lines.is_empty() {
            assert_eq!(b.get(&other).body(), b"other", "the other variant stays");
        }
    }
}

#[test]
fn it_does_not_wait_and_answers_waiting_look_ups() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    let slow = b.get(&r).ticket();
    let ticket = a.refresh(&r).ticket();
    assert_eq!(a.publish(ticket, &r, head(60.0, &[]), b"new"), Outcome::Published);
    assert_eq!(site.cache().get_at(&r, NOW, PATIENCE).body(), b"new");
    // The answer that was asked for before does not take its place.
    assert_eq!(b.publish(slow, &r, head(60.0, &[]), b"old"), Outcome::Overtaken);
    assert_eq!(b.get(&r).body(), b"new");
    wait_for("the end of all leases", || site.leases() == 0);
}

#[test]
fn a_purge_meanwhile_keeps_its_answer_out() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &[]), b"old");
    let ticket = a.refresh(&r).ticket();
    b.purge("/a");
    assert_eq!(a.publish(ticket, &r, head(60.0, &[]), b"new"), Outcome::Conflict);
}

#[test]
fn an_answer_that_is_not_shared_ends_the_record_but_an_error_does_not() {
    let site = Site::memory();
    let (a, b) = (site.cache(), site.cache());
    let r = req("/a");
    a.put(&r, head(60.0, &[]), b"old");
    let ticket = a.refresh(&r).ticket();
    assert!(ticket.replaces_graced(NOW + 69.0) && !ticket.replaces_graced(NOW + 71.0));
    ticket.refuse_error(Duration::ZERO, &a.counters);
    assert_eq!(b.get(&r).body(), b"old");
    a.refresh(&r).ticket().refuse(Duration::ZERO, &a.counters);
    assert_eq!(b.get(&r).why(), MissReason::Absent);
}
