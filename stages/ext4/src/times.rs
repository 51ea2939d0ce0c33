//! Times of inodes: 34 bits of seconds, from 1901 to 2446, and nanoseconds.
//!
//! Source: Documentation/filesystems/ext4/inodes.rst, "Inode Timestamps".

use fcpipe_tree::Timestamp;

/// 1901-12-13 20:45:52 UTC.
pub(crate) const MIN_SECS: i64 = i32::MIN as i64;
/// 2446-05-10 22:38:55 UTC.
pub(crate) const MAX_SECS: i64 = MIN_SECS + (1 << 34) - 1;

/// A time as an inode holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskTime {
    /// The lowest 32 bits of the seconds, to be read as signed.
    pub(crate) secs: u32,
    /// Bits 0 and 1: what to add to the seconds, in units of 2^32. The rest: nanoseconds.
    pub(crate) extra: u32,
}

/// Whether ext4 can hold a time as it is.
pub(crate) fn fits(time: Timestamp) -> bool {
    (MIN_SECS..=MAX_SECS).contains(&time.secs)
}

/// The time, or the nearest that ext4 can hold (there without nanoseconds, as the kernel clamps).
pub(crate) fn encode(time: Timestamp) -> DiskTime {
    let nanos = if fits(time) { time.nanos } else { 0 };
    let secs = time.secs.clamp(MIN_SECS, MAX_SECS);
    let epoch = ((secs - i64::from(secs as i32)) >> 32) as u32 & 3;
    DiskTime {
        secs: secs as u32,
        extra: nanos << 2 | epoch,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(time: DiskTime) -> Timestamp {
        Timestamp {
            secs: i64::from(time.secs as i32) + (i64::from(time.extra & 3) << 32),
            nanos: time.extra >> 2,
        }
    }

    /// The table in inodes.rst, at the edges of each row.
    #[test]
    fn row_22_times_at_every_edge_of_an_epoch() {
        for secs in [
            MIN_SECS,
            -1,
            0,
            i64::from(i32::MAX),
            1 << 31,
            (1 << 32) - 1,
            1 << 32,
            (1 << 33) - 1,
            1 << 33,
            3 << 32,
            MAX_SECS,
        ] {
            let time = Timestamp {
                secs,
                nanos: 999_999_999,
            };
            assert!(fits(time));
            assert_eq!(decode(encode(time)), time);
        }
    }

    #[test]
    fn row_22_times_beyond_the_range_become_its_ends() {
        let far = Timestamp {
            secs: MAX_SECS + 1,
            nanos: 5,
        };
        assert!(!fits(far));
        assert_eq!(
            decode(encode(far)),
            Timestamp {
                secs: MAX_SECS,
                nanos: 0
            }
        );
        let early = Timestamp {
            secs: MIN_SECS - 1,
            nanos: 5,
        };
        assert_eq!(
            decode(encode(early)),
            Timestamp {
                secs: MIN_SECS,
                nanos: 0
            }
        );
    }
}
