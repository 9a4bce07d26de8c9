//! Unscaled values of Connect's decimals as digits.

/// Postgres' numeric has at most 131 072 digits before the point and 16 383 behind it: fewer bytes than this.
const BYTES_MAX: usize = 64 * 1024;
/// Of a remainder.
const DIGITS: usize = 9;
const BASE: u64 = 1_000_000_000;

/// The text of a big-endian two's complement number with so many digits behind the point. `None` where no numeric is so long.
pub fn decimal(unscaled: &[u8], scale: i64) -> Option<String> {
    let digits_behind = usize::try_from(scale.max(0)).ok().filter(|scale| *scale <= 16_383)?;
    if unscaled.is_empty() || unscaled.len() > BYTES_MAX {
        return None;
    }
    let negative = unscaled[0] & 0x80 != 0;
    let mut digits = magnitude(unscaled, negative);
    if scale < 0 && digits != "0" {
        digits.extend(std::iter::repeat_n('0', usize::try_from(-scale).ok().filter(|zeros| *zeros <= 131_072)?));
    }
    let missing = (digits_behind + 1).saturating_sub(digits.len());
    digits.insert_str(0, &"0".repeat(missing));
    if digits_behind > 0 {
        digits.insert(digits.len() - digits_behind, '.');
    }
    if negative {
        digits.insert(0, '-');
    }
    Some(digits)
}

/// The digits without a sign, by dividing again and again.
fn magnitude(unscaled: &[u8], negative: bool) -> String {
    let mut bytes = unscaled.to_vec();
    if negative {
        let mut carry = true;
        for byte in bytes.iter_mut().rev() {
            let (sum, over) = (!*byte).overflowing_add(u8::from(carry));
            (*byte, carry) = (sum, over);
        }
    }
    let word = |chunk: &[u8]| chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let head = bytes.len() % 4;
    let mut words: Vec<u32> = bytes[head..].chunks(4).map(word).collect();
    words.insert(0, word(&bytes[..head]));
    let mut remainders = Vec::new();
    let mut first = 0;
    while first < words.len() {
        let mut rest = 0u64;
        for word in &mut words[first..] {
            let value = rest << 32 | u64::from(*word);
            *word = u32::try_from(value / BASE).expect("the remainder before is below the base");
            rest = value % BASE;
        }
        remainders.push(rest);
        while words.get(first) == Some(&0) {
            first += 1;
        }
    }
    let mut text: String = remainders.iter().rev().map(|rest| format!("{rest:0DIGITS$}")).collect();
    let zeros = text.len() - text.trim_start_matches('0').len();
    text.drain(..zeros.min(text.len() - 1));
    text
}

#[cfg(test)]
mod tests {
    use super::decimal;

    #[test]
    fn numbers_of_every_size_and_sign_are_their_digits() {
        let is = |hex: &str, scale, text: &str| {
            assert_eq!(decimal(&hex::decode(hex).unwrap(), scale).as_deref(), Some(text), "{hex}");
        };
        is("6e", 2, "1.10");
        is("014a", 2, "3.30");
        is("fe1ded", 2, "-1234.11");
        is("00", 0, "0");
        is("00", 3, "0.000");
        is("ff", 2, "-0.01");
        is("80", 0, "-128");
        is("0080", 0, "128");
        is("056bc75e2d63100000", 0, "100000000000000000000");
        is("ff0000000000000000", 4, "-1844674407370955.1616");
        is("05", -3, "5000");
        assert_eq!(decimal(&[], 0), None);
        let i128s = [i128::MIN, i128::MAX, -1_000_000_000, 999_999_999, 1_000_000_000, -1];
        for number in i128s {
            assert_eq!(decimal(&number.to_be_bytes(), 0), Some(number.to_string()));
        }
    }
}
