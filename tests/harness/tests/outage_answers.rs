//! Outages in the answers of a store that is there: late, damaged, cut, without their descriptors. A meddler between
//! varnishd and a real objmapperd does it.
//!
//! docs/outages.md has a row for each.

use anyhow::{Result, ensure};
use objmapper_harness::arrangement::Arrangement;
use objmapper_harness::meddler::{Meddler, Meddling};
use objmapper_harness::objmapperd::Objmapperd;
use objmapper_harness::outage::{DEADLINE, Stage, socket};
use objmapper_harness::shared::status;

/// The director alone uses the store: what is tested is that nothing which it is told can make it wrong.
struct Meddled {
    // In the order in which they are to end.
    stage: Stage,
    meddler: Meddler,
}

impl Meddled {
    fn set() -> Result<Self> {
        let mut meddler = None;
        let stage = Stage::set(Arrangement::Malloc, |dir| {
            let real = dir.join("real");
            std::fs::create_dir(&real)?;
            let daemon = Objmapperd::start(&real, "1g")?;
            meddler = Some(Meddler::start(&socket(dir), &daemon.socket())?);
            Ok(Some(daemon))
        })?;
        let meddler = meddler.ok_or_else(|| anyhow::anyhow!("no meddler"))?;
        stage.shares()?;
        Ok(Self { stage, meddler })
    }

    /// So many misses of each size, some of what is published, while the meddler does this. Each is answered right.
    fn misses(&self, meddling: Meddling, rounds: usize) -> Result<()> {
        let known = self.stage.published(65_000)?;
        let before = self.meddler.times();
        self.meddler.set(meddling);
        for _ in 0..rounds {
            self.stage.misses(1)?;
            self.stage.miss(&known)?;
        }
        self.meddler.set(Meddling::Nothing);
        ensure!(self.meddler.times() > before, "it has not meddled");
        Ok(())
    }

    fn heals(self) -> Result<()> {
        self.stage.wait_state(true)?;
        self.stage.shares()?;
        let counters = self.stage.cache.counters()?;
        println!("{} times: {counters:?}", self.meddler.times());
        self.stage.end()
    }
}

/// Late, but in time.
#[test]
fn later_than_usual() -> Result<()> {
    let meddled = Meddled::set()?;
    meddled.misses(Meddling::Late(DEADLINE / 20), 5)?;
    let counters = meddled.stage.cache.counters()?;
    ensure!(counters["c_out_timeout"] + counters["c_out_down"] == 0, "{counters:?}");
    let path = meddled.stage.published(200_000)?;
    meddled.meddler.set(Meddling::Late(DEADLINE / 20));
    ensure!(status(&meddled.stage.miss(&path)?) == "hit", "slow is not down");
    meddled.heals()
}

#[test]
fn later_than_the_deadline() -> Result<()> {
    let meddled = Meddled::set()?;
    meddled.misses(Meddling::Late(DEADLINE * 3), 20)?;
    let counters = meddled.stage.cache.counters()?;
    ensure!((1..=8).contains(&counters["c_out_timeout"]), "{counters:?}");
    ensure!(counters["c_out_down"] >= 80, "{counters:?}");
    meddled.heals()
}

#[test]
fn damaged() -> Result<()> {
    let meddled = Meddled::set()?;
    for _ in 0..10 {
        meddled.misses(Meddling::Flip, 10)?;
        meddled.stage.wait_state(true)?;
    }
    let counters = meddled.stage.cache.counters()?;
    ensure!(counters["c_out_protocol"] + counters["c_out_down"] + counters["c_out_timeout"] > 0, "{counters:?}");
    meddled.heals()
}

#[test]
fn cut() -> Result<()> {
    let meddled = Meddled::set()?;
    for _ in 0..10 {
        meddled.misses(Meddling::Cut, 10)?;
        meddled.stage.wait_state(true)?;
    }
    let counters = meddled.stage.cache.counters()?;
    ensure!(counters["c_out_down"] > 0, "{counters:?}");
    meddled.heals()
}

#[test]
fn without_descriptors() -> Result<()> {
    let meddled = Meddled::set()?;
    meddled.misses(Meddling::NoDescriptors, 10)?;
    let counters = meddled.stage.cache.counters()?;
    let kinds = ["c_out_protocol", "c_out_timeout", "c_out_io", "c_out_down"];
    ensure!(kinds.iter().map(|k| counters[*k]).sum::<u64>() > 0, "{counters:?}");
    meddled.heals()
}
