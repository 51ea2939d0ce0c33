//! The hash of names in indexed directories: half MD4, unsigned characters, a fixed seed.
//!
//! Sources: Documentation/filesystems/ext4/directory.rst (hash tree directories); RFC 1320 for the three
//! round functions, of which ext4 makes eight steps each.

/// `s_hash_seed`, a constant of our format: the same names give the same directories everywhere.
pub(crate) const SEED: [u32; 4] = [0x6663_7069, 0x7065_5f65, 0x7874_345f, 0x6861_7368];

/// Where a name stands in an indexed directory. Names are ordered by it, then by the minor hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NameHash {
    /// Its lowest bit is always 0: the index uses it to say "continued".
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// The hash of a name of 1 to 255 bytes.
pub(crate) fn half_md4(seed: &[u32; 4], name: &[u8]) -> NameHash {
    let mut state = *seed;
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, &words(rest));
        rest = &rest[rest.len().min(32)..];
    }
    NameHash {
        major: state[1] & !1,
        minor: state[2],
    }
}

/// Up to 32 bytes as eight words, most significant byte first; the rest is filled with the length of
/// all that remains of the name.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = rest.len() as u32 & 0xff;
    let pad = length * 0x0101_0101;
    let mut out = [pad; 8];
    for (word, chunk) in out.iter_mut().zip(rest.chunks(4)) {
        for &byte in chunk {
            *word = (*word << 8).wrapping_add(u32::from(byte));
        }
    }
    out
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    const K2: u32 = 0x5a82_7999;
    const K3: u32 = 0x6ed9_eba1;
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y) | (z & (x | y));
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;

    let mut s = *state;
    rounds(
        &mut s,
        input,
        choose,
        0,
        [0, 1, 2, 3, 4, 5, 6, 7],
        [3, 7, 11, 19],
    );
    rounds(
        &mut s,
        input,
        majority,
        K2,
        [1, 3, 5, 7, 0, 2, 4, 6],
        [3, 5, 9, 13],
    );
    rounds(
        &mut s,
        input,
        parity,
        K3,
        [3, 7, 2, 6, 1, 5, 0, 4],
        [3, 9, 11, 15],
    );
    for (to, from) in state.iter_mut().zip(s) {
        *to = to.wrapping_add(from);
    }
}

/// Eight steps; each changes one of the four words, in the order a, d, c, b.
#[inline(always)]
fn rounds(
    s: &mut [u32; 4],
    input: &[u32; 8],
    f: impl Fn(u32, u32, u32) -> u32,
    constant: u32,
    order: [usize; 8],
    shifts: [u32; 4],
) {
    for (step, &word) in order.iter().enumerate() {
        let a = (4 - step % 4) % 4;
        let (b, c, d) = ((a + 1) % 4, (a + 2) % 4, (a + 3) % 4);
        s[a] = s[a]
            .wrapping_add(f(s[b], s[c], s[d]))
            .wrapping_add(input[word])
            .wrapping_add(constant)
            .rotate_left(shifts[step % 4]);
    }
}
