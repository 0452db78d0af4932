//! Getting bytes for what is stored: reservations below a tier's bound, and operations that a file system without space refused.
//!
//! Both evict the least recently used objects. The bound follows the file system (`tier::capacity`), so that most
//! evictions happen before an operation fails.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::diagnostics::warn;
use super::object::Object;
use super::publication::Private;
use super::tier::{Medium, Tier};
use super::{Inner, StoreError, TierKind};

/// Evictions for one operation before it fails.
const MAX_ROUNDS: u32 = 8;
/// Minimum number of bytes of one eviction.
const MIN_SHARE: u64 = 1 << 20;
/// Minimum number of bodies of one eviction, for a file system that is out of inodes.
const MIN_FILES: usize = 16;

impl Inner {
    /// Reserves `bytes` in the tier of this kind, or in the first tier that has them, and returns the tier.
    pub(crate) fn reserve_in(&self, kind: Option<TierKind>, bytes: u64) -> Result<&Arc<Tier>, StoreError> {
        let mut full = StoreError::Invalid("the store has no tier".into());
        for tier in self.tiers.candidates(kind)? {
            match self.reserve(tier, bytes) {
                Ok(()) => return Ok(tier),
                Err(e) => full = e,
            }
        }
        Err(full)
    }

    /// Evicts until `bytes` fit, and reserves them. Fails only if no evictable object is left.
    pub(crate) fn reserve(&self, tier: &Tier, bytes: u64) -> Result<(), StoreError> {
        let account = &tier.account;
        if account.try_add(bytes) {
            return Ok(());
        }
        let full = || StoreError::Full { tier: tier.kind, wanted: bytes, limit: account.bound() };
        if bytes > account.bound() {
            return Err(full());
        }
        let _evicting = tier.evicting.lock();
        tier.recovery.complete_order(&tier.order);
        loop {
            if account.try_add(bytes) {
                return Ok(());
            }
            let need = account.used().saturating_add(bytes).saturating_sub(account.bound());
            let victims = tier.order.victims(need, 1);
            if victims.is_empty() {
                self.settle_leftovers();
                return if account.try_add(bytes) { Ok(()) } else { Err(full()) };
            }
            self.evict_all(tier, victims);
        }
    }

    /// Carries out `act`. If the tier's file system has no space for it, evicts and tries again. The caller holds no lock
    /// that comes after `evicting` in the order of locks.
    pub(crate) fn with_space<T>(
        &self,
        tier: &Arc<Tier>,
        act: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.with_space_in(&[tier], act)
    }

    /// Carries out `act`, which changes any of these tiers, as [`Self::with_space`] does.
    pub(crate) fn with_space_in<T>(
        &self,
        tiers: &[&Arc<Tier>],
        mut act: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let is_evicted = || tiers.iter().fold(false, |any, tier| self.evict_share(tier) | any);
        for _ in 0..MAX_ROUNDS {
            match act() {
                Err(e) if e.is_no_space() && is_evicted() => {}
                outcome => return outcome.inspect_err(|e| self.diagnostics.note_error(e)),
            }
        }
        act().inspect_err(|e| self.diagnostics.note_error(e))
    }

    /// Evicts a share of the tier because the file system has no space. Returns false if no object is evictable.
    fn evict_share(&self, tier: &Tier) -> bool {
        self.diagnostics.no_space.fetch_add(1, Relaxed);
        if tier.files.medium == Medium::Shared {
            tier.capacity.suspect();
            self.disk_wake.notify();
        }
        let _evicting = tier.evicting.lock();
        tier.recovery.complete_order(&tier.order);
        let share = (tier.account.used() / 64).max(MIN_SHARE);
        self.evict_all(tier, tier.order.victims(share, MIN_FILES)) > 0
    }

    /// Evicts `victims`, which the caller has taken out of the tier's order, and returns the number of evicted objects. The
    /// caller holds `evicting`.
    fn evict_all(&self, tier: &Tier, victims: Vec<Arc<Object>>) -> usize {
        let gone: Vec<_> = victims.into_iter().filter(|victim| self.evict(victim)).collect();
        tier.flush();
        for object in &gone {
            tier.account.evictions.fetch_add(1, Relaxed);
            tier.account.evicted_bytes.fetch_add(object.charge(), Relaxed);
            self.remove_file(object);
        }
        gone.len()
    }

    /// Sets the tier's ceiling by the free space of its file system, and evicts down to it.
    pub(crate) fn set_ceiling(&self, tier: &Tier) {
        if tier.files.medium != Medium::Shared {
            return;
        }
        let check = match tier.check_capacity(|| self.unwritten(tier)) {
            Ok(check) => check,
            Err(e) => return self.diagnostics.note_error(&e),
        };
        let mut ceiling = check.ceiling;
        let evict = |bytes, count| {
            let _evicting = tier.evicting.lock();
            tier.recovery.complete_order(&tier.order);
            self.evict_all(tier, tier.order.victims(bytes, count));
        };
        if check.over_quota > 0 {
            evict(check.over_quota, 1);
            ceiling = ceiling.min(tier.account.used());
        }
        if check.inodes > 0 {
            evict(0, check.inodes);
        }
        let account = &tier.account;
        account.set_ceiling(if ceiling < account.limit { ceiling } else { u64::MAX });
        if account.used() > account.bound()
            && let Err(e) = self.reserve(tier, 0)
        {
            warn(&tier.capacity.log, &e);
        }
    }

    /// Returns the bytes that private objects of the tier have reserved and not written.
    fn unwritten(&self, tier: &Tier) -> u64 {
        let sessions: Vec<_> = self.sessions.lock().values().cloned().collect();
        let mut sum = 0u64;
        for session in sessions {
            let privates: Vec<Arc<Private>> = session.state.lock().privates.values().cloned().collect();
            for private in privates.iter().filter(|private| std::ptr::eq(&*private.tier, tier)) {
                let reserved = private.state.lock().reserved;
                let written = tier.files.measure(private.reader.as_fd()).map_or(0, |measure| measure.allocated);
                sum = sum.saturating_add(reserved.saturating_sub(written));
            }
        }
        sum
    }
}
