//! What a launch uses, in figures.

use serde::{Deserialize, Serialize};

use crate::life::Life;
use crate::message::Failed;

/// What one launch uses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The processes of its machine.
    pub pids: Vec<u32>,
}

impl Stats {
    pub(crate) fn of(life: &Life) -> Result<Self, Failed> {
        let guest = life
            .guest_now()
            .ok_or_else(|| crate::life::refused("container not running"))?;
        Ok(Stats {
            pids: guest.processes().iter().map(|mark| mark.pid).collect(),
        })
    }
}
