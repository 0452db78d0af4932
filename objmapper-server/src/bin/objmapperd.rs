//! `objmapperd`: serves the store on a Unix socket.
//!
//! It reads the options, opens the store, listens, tells systemd that it is ready, and waits for a signal. SIGTERM and SIGINT drain
//! the connections, close the disk tier and end the process. SIGHUP is logged and has no effect.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use objmapper_log::RateLimited;
use objmapper_server::config::Config;
use objmapper_server::net::Server;
use objmapper_server::store::Store;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static HANGUPS: RateLimited = RateLimited::new(5, Duration::from_secs(60));

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("objmapperd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    // First, so that a signal during the start is neither lost nor ends the process half-way.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let config = Config::from_args()?;
    allow_descriptors(config.descriptors())?;
    let started = Instant::now();
    let store = Store::open(config.store)?;
    let socket = config.listen.socket.clone();
    let server = Server::start(config.listen, store.clone())?;
    for tier in &store.stats().tiers {
        log::info!("{} tier: {} of {} bytes used, {} objects", tier.tier, tier.used, tier.limit, tier.objects);
    }
    log::info!("serving {} after {:.3} s", socket.display(), started.elapsed().as_secs_f64());
    notify(sd_notify::NotifyState::Ready);
    let ends = |signal: &i32| {
        // The default action would end the process, and the memory tier with it.
        if *signal == SIGHUP
            && let Some(left_out) = HANGUPS.admit()
        {
            log::info!(
                "SIGHUP is ignored: options are read at the start only; to change them, restart objmapperd{left_out}"
            );
        }
        *signal != SIGHUP
    };
    if let Some(signal) = signals.forever().find(ends) {
        log::info!("signal {signal}: draining for at most {:?}", config.drain_timeout);
    }
    notify(sd_notify::NotifyState::Stopping);
    server.drain(config.drain_timeout);
    // Dropping the last handle closes the disk tier cleanly.
    drop(store);
    log::info!("stopped");
    Ok(())
}

/// Notifies systemd, if it started this process.
fn notify(state: sd_notify::NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::warn!("telling systemd: {error}");
    }
}

/// Raises the soft limit of open files to what the options need. The error names the options and limits to change.
fn allow_descriptors(needed: u64) -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| format!("the limit on open files: {e}"))?;
    if soft >= needed || hard >= needed && setrlimit(Resource::RLIMIT_NOFILE, needed, hard).is_ok() {
        return Ok(());
    }
    Err(format!(
        "--max-connections and --max-private need {needed} open files, the limit is {hard}; remedy: raise \
         it (ulimit -n, LimitNOFILE= in the unit), or lower one of the two"
    ))
}
