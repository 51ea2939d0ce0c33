//! Which versions of Firecracker this driver speaks to.

use std::fmt;

/// `GET /version`, without what follows the numbers (`-dev`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) patch: u32,
}

/// The first that describes its devices in ACPI (its CHANGELOG, 1.8.0): kernels of distributions find them only there.
const OLDEST: Version = Version::new(1, 8, 0);

/// The promise of an API that stays as it is holds for a major version.
const MAJOR: u32 = 1;

/// A field or action that not every version has; the numbers are its CHANGELOG's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feature {
    /// `rate_limiter` in `/serial`: a guest that floods its console does so at a bounded rate.
    SerialRateLimit,
    /// `mtu` in `/network-interfaces`.
    Mtu,
    /// `SendCtrlAltDel` that also a kernel with ACPI hears.
    CtrlAltDel,
}

impl Version {
    pub(crate) const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// `1.16.1`, `1.17.0-dev`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let numbers = text.split(['-', '+']).next()?;
        let mut parts = numbers.split('.').map(|part| {
            // Not what `parse` also takes: a sign.
            part.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| part.parse().ok())?
        });
        let version = Self::new(parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(version)
    }

    /// Why this driver leaves it alone, if it does.
    pub(crate) fn refusal(self) -> Option<String> {
        if self.major != MAJOR {
            return Some(format!(
                "it is version {self}, and this driver knows the API of {MAJOR}.x"
            ));
        }
        (self < OLDEST).then(|| {
            format!(
                "it is version {self}; the first whose devices a distribution's kernel finds is {OLDEST}"
            )
        })
    }

    pub(crate) fn has(self, feature: Feature) -> bool {
        let since = match feature {
            Feature::SerialRateLimit | Feature::Mtu => Self::new(1, 16, 0),
            Feature::CtrlAltDel => Self::new(1, 12, 0),
        };
        self >= since
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let version = |text| Version::parse(text).unwrap();
        assert_eq!(version("1.16.1"), Version::new(1, 16, 1));
        assert_eq!(version("1.17.0-dev"), Version::new(1, 17, 0));
        assert!(version("1.9.10") < version("1.10.0"));
        for bad in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "v1.2.3",
            "1.+2.3",
            "1.2.x",
            "99999999999.1.1",
        ] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn row_44_versions_that_are_not_spoken_to() {
        let refusal = |text| Version::parse(text).unwrap().refusal();
        assert!(refusal("1.7.9").unwrap().contains("1.8.0"));
        assert!(refusal("2.0.0").unwrap().contains("1.x"));
        assert!(refusal("0.25.0").is_some());
        assert_eq!(refusal("1.8.0"), None);
        assert_eq!(refusal("1.40.0"), None);
    }

    #[test]
    fn what_a_version_has() {
        assert!(!Version::new(1, 15, 9).has(Feature::SerialRateLimit));
        assert!(Version::new(1, 16, 0).has(Feature::SerialRateLimit));
        assert!(!Version::new(1, 11, 0).has(Feature::CtrlAltDel));
        assert!(Version::new(1, 16, 1).has(Feature::CtrlAltDel));
    }
}
