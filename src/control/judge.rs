//! Whether a good manifest is for this appliance, now.

use super::{
    manifest::Manifest,
    refusal::{Reason, Refused},
};
use crate::asset::{Sha256, UnixTime};

/// What an appliance is called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its own name.
    pub appliance: String,
    /// Its site's.
    pub site: String,
    /// Those of the groups that it belongs to.
    pub groups: Vec<String>,
}

/// The manifest of the highest sequence that was accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Highest {
    /// Its sequence.
    pub sequence: u64,
    /// Its digest.
    pub digest: Sha256,
    /// When it was accepted.
    pub received: UnixTime,
}

/// Judges a manifest whose signatures are good.
///
/// # Errors
/// It is not for this appliance, not now, or not above the highest one.
pub fn judge(
    manifest: &Manifest,
    identity: &Identity,
    highest: Option<&Highest>,
    now: UnixTime,
) -> Result<(), Refused> {
    let head = &manifest.head;
    let Identity { appliance, site, groups } = identity;
    if !head.audience.names(appliance, site, groups) {
        let what = format!("it names neither appliance '{appliance}' nor site '{site}' nor a group of {groups:?}");
        return Err(Refused::new(Reason::NotForUs, what).within("audience"));
    }
    if let Some(highest) = highest.filter(|highest| head.sequence <= highest.sequence) {
        let what = match head.sequence == highest.sequence {
            true => format!("another manifest with sequence {} was accepted before", highest.sequence),
            false => format!("it is {}, and {} was accepted before", head.sequence, highest.sequence),
        };
        return Err(Refused::new(Reason::Rollback, what).within("sequence"));
    }
    if manifest.has_expired(now) {
        let what = format!("its time was over {} s ago", now.since(head.expires));
        return Err(Refused::new(Reason::Expired, what).within("expires"));
    }
    if now < head.not_before {
        let what = format!("its time comes in {} s", head.not_before.since(now));
        return Err(Refused::new(Reason::NotYet, what).within("not_before"));
    }
    Ok(())
}
