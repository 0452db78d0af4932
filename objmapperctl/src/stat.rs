//! `stat`: the store's figures.

use serde_json::json;

use crate::failure::Failure;
use crate::options::JsonArgument;
use crate::output::Out;
use crate::store::Store;
use crate::text::size;

pub(crate) fn run(store: &Store, arguments: &JsonArgument, out: &mut Out) -> Result<(), Failure> {
    let stat = store.client.stat()?;
    // The one of this program is no news.
    let sessions = stat.sessions.saturating_sub(1);
    if arguments.json {
        let tiers: Vec<_> = stat
            .tiers
            .iter()
            .map(|tier| {
                json!({
                    "tier": tier.tier.to_string(),
                    "limit": tier.limit,
                    "used": tier.used,
                    "pinned": tier.pinned,
                    "objects": tier.objects,
                    "evictions": tier.evictions,
                })
            })
            .collect();
        return out.line(json!({
            "tiers": tiers,
            "sessions": sessions,
            "private": stat.private,
            "leases": stat.leases,
        }));
    }
    out.line(format_args!(
        "{:<6} {:>8} {:>8} {:>6} {:>8} {:>10} {:>10}",
        "TIER", "LIMIT", "USED", "FILL", "PINNED", "OBJECTS", "EVICTED"
    ))?;
    for tier in &stat.tiers {
        let fill = if tier.limit == 0 { 0.0 } else { tier.used as f64 / tier.limit as f64 * 100.0 };
        out.line(format_args!(
            "{:<6} {:>8} {:>8} {:>5.1}% {:>8} {:>10} {:>10}",
            tier.tier.to_string(),
            size(tier.limit),
            size(tier.used),
            fill,
            size(tier.pinned),
            tier.objects,
            tier.evictions
        ))?;
    }
    out.line(format_args!("{sessions} other sessions, {} private objects, {} leases", stat.private, stat.leases))
}
