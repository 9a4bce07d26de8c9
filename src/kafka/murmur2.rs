//! Where Kafka's Java clients put a key, and librdkafka's `murmur2_random` after them: MurmurHash2 with Java's seed, its sign
//! bit cleared, modulo the partitions. For who wants to know whether a key's records are where all others of it are.

const SEED: u32 = 0x9747_b28c;
const M: u32 = 0x5bd1_e995;
const R: u32 = 24;

/// The hash of a key (org.apache.kafka.common.utils.Utils.murmur2).
pub fn hash(key: &[u8]) -> u32 {
    // Java's lengths have 32 bits.
    #[expect(clippy::cast_possible_truncation, reason = "a record has less than 4 GiB")]
    let mut hash = SEED ^ key.len() as u32;
    let (words, rest) = key.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k = (k ^ (k >> R)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// The partition of a key with this hash.
pub fn partition(hash: u32, partitions: i32) -> i32 {
    (hash & 0x7fff_ffff).cast_signed() % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_java_s() {
        // UtilsTest.testMurmur2 of Apache Kafka.
        for (key, expected) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(hash(key.as_bytes()).cast_signed(), expected, "{key}");
        }
        assert_eq!(partition(hash(b"21"), 4), (-973_932_308_i32 & 0x7fff_ffff) % 4);
    }
}
