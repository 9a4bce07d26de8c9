//! Postgres text to a Connect value, straight into whatever writes it: JSON, Avro, a tree.
//!
//! [`write`] knows every [`Encoding`]; a [`Writer`] knows one format. So both formats say the same of every value, and neither
//! builds a tree in between. What is said of the format's fidelity ([`Fidelity`]) holds for every format alike: where the
//! value does not give the exact text back, the text rides beside it in `ls-text`.
//!
//! Invariants: text that is not of its type is [`Unfit::NotOfItsType`], never a guess; a value that the mode has no form for is
//! [`Unfit::NoForm`]. What was written before an error does not count.

use super::mapping::{Encoding, Unit};
use super::schema::Value;
use crate::parts;
use crate::pgtext::{self, Stamp, Temporal};
use crate::relation::BinaryMode;

/// Debezium's streamed sentinels for infinite dates, in days: java.time's LocalDate limits without the upper bits.
pub const DATE_INFINITY: i32 = -2_147_472_692;
pub const DATE_MINUS_INFINITY: i32 = -2_147_472_691;
/// The JDBC driver's infinite timestamps, in milliseconds.
pub const TIMESTAMP_INFINITY_MS: i64 = 9_223_372_036_825_200;
pub const TIMESTAMP_MINUS_INFINITY_MS: i64 = -9_223_372_036_832_400;
/// Debezium's names for numerics that are no numbers, beside Postgres'.
pub const NUMERIC_NAMES: [(&str, &str); 3] =
    [("NaN", "NAN"), ("Infinity", "POSITIVE_INFINITY"), ("-Infinity", "NEGATIVE_INFINITY")];
/// Floats that are no numbers: Java, Postgres and JsonConverter call them alike.
pub const FLOAT_NAMES: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// A month in Debezium's numeric intervals: 30.4375 days.
const MONTH_MICROS: i128 = 2_629_800_000_000;
const DAY_MICROS: i128 = 86_400_000_000;
const DAY_SECONDS: i64 = 86_400;

/// What writes the values of one format.
pub trait Writer {
    fn null(&mut self);
    fn boolean(&mut self, value: bool);
    fn integer(&mut self, value: i64);
    /// An integer as Postgres prints it, checked to be one of 64 bits at most.
    fn digits(&mut self, text: &[u8]);
    /// A float as Postgres prints it: a JSON number, or one of [`FLOAT_NAMES`].
    fn float(&mut self, text: &[u8]);
    fn string(&mut self, text: &str);
    /// A string that `print` appends: ASCII without quotes, backslashes and control characters.
    fn plain(&mut self, print: impl FnOnce(&mut Vec<u8>));
    fn bytes(&mut self, bytes: &[u8]);
    /// Bytes of a bytea text (`\x0aff`); `None` if it is not hex.
    fn bytea(&mut self, text: &[u8]) -> Option<()>;

    fn begin_array(&mut self);
    /// Before each element.
    fn element(&mut self);
    fn end_array(&mut self);

    /// `text_keys`: keys are strings.
    fn begin_map(&mut self, text_keys: bool);
    fn map_key(&mut self);
    fn map_value(&mut self);
    fn end_map(&mut self);

    fn begin_struct(&mut self);
    /// Before each field, in the schema's order.
    fn field(&mut self, name: &'static str);
    fn end_struct(&mut self);

    /// Whether an array may hold arrays where its schema says elements. Where not, those of several dimensions are flat.
    fn nests(&self) -> bool;
    /// Room for printing: whoever appends takes it off again.
    fn scratch(&mut self) -> &mut Vec<u8>;
}

/// What a written value is worth to our decoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fidelity {
    Exact,
    /// The text must ride beside it.
    NeedsText,
}

/// Why a text has no value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    NotUtf8,
    NotOfItsType,
    /// The mode can't say it: NaN as a precise decimal, the year 20000 in nanoseconds.
    NoForm,
    /// No mode can say it, and so its text does: an empty bit varying(1), which is neither true nor false.
    Unsayable,
}

fn exact_if(exact: bool) -> Fidelity {
    if exact { Fidelity::Exact } else { Fidelity::NeedsText }
}

/// Writes the value that `text` is. Decoders read it back from the value alone iff the answer is [`Fidelity::Exact`].
pub fn write<W: Writer>(encoding: &Encoding, text: &[u8], out: &mut W) -> Result<Fidelity, Unfit> {
    match encoding {
        Encoding::Text(_) | Encoding::Enum { .. } => {
            out.string(utf8(text)?);
            Ok(Fidelity::Exact)
        }
        Encoding::Int16 | Encoding::Int32 | Encoding::Int64 => {
            out.digits(is_integer_of(encoding, text).then_some(text).ok_or(Unfit::NotOfItsType)?);
            Ok(Fidelity::Exact)
        }
        Encoding::Float32 | Encoding::Float64 => float(text, out),
        Encoding::DecimalText { .. } => decimal_text(text, out),
        Encoding::DecimalDouble => double(text, out),
        Encoding::Decimal { scale, .. } => {
            let unscaled = Unscaled::read(text)?.at_scale(usize::from(*scale))?;
            out.bytes(&unscaled);
            Ok(Fidelity::NeedsText)
        }
        Encoding::VariableDecimal => variable_decimal(text, out),
        Encoding::MoneyText | Encoding::MoneyDouble | Encoding::Money => money(encoding, text, out),
        Encoding::Bool => {
            let (value, fidelity) = match text {
                b"t" => (true, Fidelity::Exact),
                b"f" => (false, Fidelity::Exact),
                // A cast to text prints these.
                b"true" => (true, Fidelity::NeedsText),
                b"false" => (false, Fidelity::NeedsText),
                _ => return Err(Unfit::NotOfItsType),
            };
            out.boolean(value);
            Ok(fidelity)
        }
        Encoding::Bytes(mode) => bytea(*mode, text, out),
        Encoding::Opaque(mode) => {
            opaque(*mode, utf8(text)?.as_bytes(), out);
            Ok(Fidelity::NeedsText)
        }
        Encoding::Bit { varying } => {
            out.boolean(match text {
                b"1" => true,
                b"0" => false,
                b"" if *varying => return Err(Unfit::Unsayable),
                _ => return Err(Unfit::NotOfItsType),
            });
            Ok(Fidelity::Exact)
        }
        Encoding::Bits { .. } => {
            out.bytes(&bits(text)?);
            Ok(Fidelity::NeedsText)
        }
        Encoding::Date | Encoding::ConnectDate | Encoding::IsoDate => date(encoding, text, out),
        Encoding::Time(_) | Encoding::ConnectTime | Encoding::IsoTime => time(encoding, text, out),
        Encoding::Timestamp(_) | Encoding::ConnectTimestamp | Encoding::IsoTimestamp => timestamp(encoding, text, out),
        Encoding::TimestampTz { digits } => timestamptz(*digits, text, out),
        Encoding::TimeTz => {
            let (micros, offset) = pgtext::parse_timetz(text).ok_or(Unfit::NotOfItsType)?;
            let utc = (micros - offset * 1_000_000).rem_euclid(DAY_SECONDS * 1_000_000);
            out.plain(|out| {
                pgtext::push_time(out, utc);
                out.push(b'Z');
            });
            Ok(Fidelity::NeedsText)
        }
        Encoding::IntervalText | Encoding::IntervalMicros => interval(encoding, text, out),
        Encoding::HstoreJson | Encoding::HstoreMap => hstore(encoding, text, out),
        Encoding::Point => point(text, out),
        Encoding::Geometry(_) => geometry(text, out),
        Encoding::DoubleVector | Encoding::FloatVector => vector(text, out),
        Encoding::SparseVector => sparse_vector(text, out),
        Encoding::NumberVector(number) => {
            out.begin_array();
            for text in text.split(|b| *b == b' ').filter(|text| !text.is_empty()) {
                out.element();
                write(number, text, out)?;
            }
            out.end_array();
            Ok(Fidelity::NeedsText)
        }
        Encoding::Array { element, delimiter } => array(element, *delimiter, text, out),
        Encoding::Skipped => Ok(Fidelity::NeedsText),
    }
}

fn utf8(text: &[u8]) -> Result<&str, Unfit> {
    std::str::from_utf8(text).map_err(|_| Unfit::NotUtf8)
}

/// Whether `print` gives exactly `text`.
fn prints_as(out: &mut impl Writer, text: &[u8], print: impl FnOnce(&mut Vec<u8>)) -> bool {
    let scratch = out.scratch();
    let start = scratch.len();
    print(scratch);
    let same = &scratch[start..] == text;
    scratch.truncate(start);
    same
}

/// Whether the text is an integer as Postgres prints it that its type holds.
fn is_integer_of(encoding: &Encoding, text: &[u8]) -> bool {
    // So many bytes can't be too large, whatever they are.
    let (least, most, bytes_sure) = match encoding {
        Encoding::Int16 => (i64::from(i16::MIN), i64::from(i16::MAX), 4),
        Encoding::Int32 => (i64::from(i32::MIN), i64::from(i32::MAX), 9),
        _ => (i64::MIN, i64::MAX, 18),
    };
    let number = || std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    let held = || text.len() <= bytes_sure || number().is_some_and(|number| (least..=most).contains(&number));
    pgtext::is_integer(text) && text != b"-0" && held()
}

fn float(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let named = FLOAT_NAMES.iter().any(|name| name.as_bytes() == text);
    if !named && !pgtext::is_json_number(text) {
        return Err(Unfit::NotOfItsType);
    }
    out.float(text);
    Ok(exact_if(!named))
}

fn decimal_text(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    if text.last().is_some_and(u8::is_ascii_digit) {
        out.string(utf8(text)?);
        return Ok(Fidelity::Exact);
    }
    let name = NUMERIC_NAMES.iter().find(|(postgres, _)| postgres.as_bytes() == text);
    out.string(name.ok_or(Unfit::NotOfItsType)?.1);
    Ok(Fidelity::NeedsText)
}

fn double(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    if FLOAT_NAMES.iter().any(|name| name.as_bytes() == text) {
        out.float(text);
        return Ok(Fidelity::NeedsText);
    }
    if !pgtext::is_json_number(text) {
        return Err(Unfit::NotOfItsType);
    }
    let number: f64 = utf8(text)?.parse().map_err(|_| Unfit::NotOfItsType)?;
    let shown = match number {
        f64::INFINITY => "Infinity".to_owned(),
        f64::NEG_INFINITY => "-Infinity".to_owned(),
        _ => format!("{number:?}"),
    };
    out.float(shown.as_bytes());
    Ok(Fidelity::NeedsText)
}

/// Decimal digits without a point, and how many of them stood behind it.
struct Unscaled {
    negative: bool,
    digits: Vec<u8>,
    scale: usize,
}

impl Unscaled {
    fn read(text: &[u8]) -> Result<Unscaled, Unfit> {
        if NUMERIC_NAMES.iter().any(|(name, _)| name.as_bytes() == text) {
            return Err(Unfit::NoForm);
        }
        let plain = text.strip_prefix(b"-").unwrap_or(text);
        let point = plain.iter().position(|b| *b == b'.');
        let scale = point.map_or(0, |point| plain.len() - point - 1);
        let digits: Vec<u8> = plain.iter().copied().filter(|b| *b != b'.').collect();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(Unfit::NotOfItsType);
        }
        Ok(Unscaled { negative: plain.len() < text.len(), digits, scale })
    }

    /// Big-endian two's complement at a scale that has room for every digit.
    fn at_scale(mut self, scale: usize) -> Result<Vec<u8>, Unfit> {
        let missing = scale.checked_sub(self.scale).ok_or(Unfit::NoForm)?;
        self.digits.extend(std::iter::repeat_n(b'0', missing));
        Ok(self.bytes())
    }

    /// Without trailing zeros behind the point.
    fn stripped(mut self) -> Unscaled {
        while self.scale > 0 && self.digits.last() == Some(&b'0') {
            self.digits.pop();
            self.scale -= 1;
        }
        self
    }

    /// Big-endian two's complement, as short as it can be: Java's `BigInteger.toByteArray`.
    fn bytes(&self) -> Vec<u8> {
        // Base 10^18 to base 2^32, least significant limb first.
        let mut limbs: Vec<u32> = Vec::with_capacity(self.digits.len() / 9 + 1);
        for piece in self.digits.chunks(9) {
            let mut carry = piece.iter().fold(0u64, |number, digit| number * 10 + u64::from(digit - b'0'));
            let factor = 10u64.pow(u32::try_from(piece.len()).expect("nine at most"));
            for limb in &mut limbs {
                let wide = u64::from(*limb) * factor + carry;
                *limb = low_half(wide);
                carry = wide >> 32;
            }
            if carry > 0 {
                limbs.push(low_half(carry));
            }
        }
        if self.negative {
            let mut carry = true;
            for limb in &mut limbs {
                (*limb, carry) = (!*limb).overflowing_add(u32::from(carry));
            }
        }
        let is_zero = limbs.iter().all(|limb| *limb == 0);
        let sign = if self.negative && !is_zero { 0xff } else { 0 };
        let mut bytes: Vec<u8> =
            std::iter::once(sign).chain(limbs.iter().rev().flat_map(|limb| limb.to_be_bytes())).collect();
        let spare = bytes.windows(2).take_while(|pair| pair[0] == sign && (pair[1] ^ sign) < 0x80).count();
        bytes.drain(..spare);
        bytes
    }
}

fn low_half(wide: u64) -> u32 {
    u32::try_from(wide & 0xffff_ffff).expect("32 bits")
}

fn variable_decimal(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let unscaled = Unscaled::read(text)?.stripped();
    out.begin_struct();
    out.field("scale");
    out.integer(i64::try_from(unscaled.scale).expect("Postgres has 16383 digits behind the point"));
    out.field("value");
    out.bytes(&unscaled.bytes());
    out.end_struct();
    Ok(Fidelity::NeedsText)
}

fn money(encoding: &Encoding, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    // 64 bits of cents have 19 digits, a point and a sign.
    let mut plain = [0u8; 24];
    let mut len = 0;
    for byte in text.iter().filter(|b| !matches!(b, b'$' | b',')) {
        *plain.get_mut(len).ok_or(Unfit::NotOfItsType)? = *byte;
        len += 1;
    }
    let plain = &plain[..len];
    if !plain.iter().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'-')) || !pgtext::is_json_number(plain) {
        return Err(Unfit::NotOfItsType);
    }
    match encoding {
        Encoding::MoneyDouble => double(plain, out),
        Encoding::Money => {
            out.bytes(&Unscaled::read(plain)?.at_scale(2)?);
            Ok(Fidelity::NeedsText)
        }
        _ => {
            let exact = prints_as(out, text, |o| {
                let _ = push_money(o, plain);
            });
            out.string(utf8(plain)?);
            Ok(exact_if(exact))
        }
    }
}

/// Appends money as Postgres prints it with lc_monetary = C: `-$1,234.50`.
pub fn push_money(out: &mut Vec<u8>, plain: &[u8]) -> Option<()> {
    if !pgtext::is_json_number(plain) {
        return None;
    }
    let digits = plain.strip_prefix(b"-").unwrap_or(plain);
    let whole = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
    if digits.len() < plain.len() {
        out.push(b'-');
    }
    out.push(b'$');
    for (i, digit) in digits.iter().enumerate() {
        if i > 0 && i < whole && (whole - i).is_multiple_of(3) {
            out.push(b',');
        }
        out.push(*digit);
    }
    Some(())
}

fn bytea(mode: BinaryMode, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let fidelity = exact_if(!text.iter().any(u8::is_ascii_uppercase));
    let digits = text.strip_prefix(b"\\x").ok_or(Unfit::NotOfItsType)?;
    match mode {
        BinaryMode::Bytes => out.bytea(text).ok_or(Unfit::NotOfItsType)?,
        BinaryMode::Hex => {
            if digits.len() % 2 != 0 || !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err(Unfit::NotOfItsType);
            }
            out.plain(|out| out.extend(digits.iter().map(u8::to_ascii_lowercase)));
        }
        BinaryMode::Base64 | BinaryMode::Base64UrlSafe => {
            let mut unfit = false;
            out.plain(|out| {
                let start = out.len();
                unfit = pgtext::push_base64(out, text).is_none();
                if mode == BinaryMode::Base64UrlSafe {
                    make_url_safe(&mut out[start..]);
                }
            });
            if unfit {
                return Err(Unfit::NotOfItsType);
            }
        }
    }
    Ok(fidelity)
}

fn make_url_safe(base64: &mut [u8]) {
    for byte in base64 {
        match byte {
            b'+' => *byte = b'-',
            b'/' => *byte = b'_',
            _ => {}
        }
    }
}

/// Bytes as the mode says.
pub fn opaque(mode: BinaryMode, bytes: &[u8], out: &mut impl Writer) {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    match mode {
        BinaryMode::Bytes => out.bytes(bytes),
        BinaryMode::Base64 => out.string(&STANDARD.encode(bytes)),
        BinaryMode::Base64UrlSafe => out.string(&URL_SAFE.encode(bytes)),
        BinaryMode::Hex => out.string(&hex::encode(bytes)),
    }
}

/// The last bit is bit 0 of the first byte; zero bytes at the end are cut.
fn bits(text: &[u8]) -> Result<Vec<u8>, Unfit> {
    let mut bytes = vec![0u8; text.len().div_ceil(8)];
    for (place, bit) in text.iter().rev().enumerate() {
        match bit {
            b'1' => bytes[place / 8] |= 1 << (place % 8),
            b'0' => {}
            _ => return Err(Unfit::NotOfItsType),
        }
    }
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn date(encoding: &Encoding, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let (days, exact) = match pgtext::parse_date(text).ok_or(Unfit::NotOfItsType)? {
        Temporal::Infinity => (DATE_INFINITY, false),
        Temporal::MinusInfinity => (DATE_MINUS_INFINITY, false),
        Temporal::Finite(days) => {
            let same = pgtext::is_plain_date(text) || prints_as(out, text, |o| pgtext::push_date(o, days));
            (days, pgtext::DATE_RANGE.contains(&days) && same)
        }
    };
    if *encoding == Encoding::IsoDate {
        out.plain(|out| pgtext::push_iso_date(out, days));
        return Ok(Fidelity::NeedsText);
    }
    out.integer(i64::from(days));
    Ok(exact_if(exact))
}

fn time(encoding: &Encoding, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let micros = pgtext::parse_time(text).ok_or(Unfit::NotOfItsType)?;
    let (number, carried) = match encoding {
        Encoding::Time(Unit::Micros) => (micros, micros),
        Encoding::Time(Unit::Nanos) => (micros * 1_000, micros),
        Encoding::IsoTime => {
            // As java.time's LocalTime: it has no 24:00.
            out.plain(|out| {
                pgtext::push_time(out, micros % (DAY_SECONDS * 1_000_000));
                out.push(b'Z');
            });
            return Ok(Fidelity::NeedsText);
        }
        _ => (micros / 1_000, micros / 1_000 * 1_000),
    };
    let same = pgtext::is_plain_time(text) || prints_as(out, text, |o| pgtext::push_time(o, carried));
    let exact = carried == micros && same;
    out.integer(number);
    Ok(exact_if(exact))
}

/// The unit of a timestamp's number; an ISO string has none.
pub fn timestamp_unit(encoding: &Encoding) -> Option<Unit> {
    match encoding {
        Encoding::Timestamp(unit) => Some(*unit),
        Encoding::ConnectTimestamp => Some(Unit::Millis),
        _ => None,
    }
}

fn timestamp(encoding: &Encoding, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let parsed = pgtext::parse_timestamp(text).ok_or(Unfit::NotOfItsType)?;
    let Some(unit) = timestamp_unit(encoding) else {
        let stamp = match parsed {
            Temporal::Infinity => Stamp::from_millis(TIMESTAMP_INFINITY_MS),
            Temporal::MinusInfinity => Stamp::from_millis(TIMESTAMP_MINUS_INFINITY_MS),
            Temporal::Finite(stamp) => stamp,
        };
        out.plain(|out| pgtext::push_iso_utc(out, stamp, 0));
        return Ok(Fidelity::NeedsText);
    };
    let number = match parsed {
        Temporal::Infinity => infinite(unit, TIMESTAMP_INFINITY_MS),
        Temporal::MinusInfinity => infinite(unit, TIMESTAMP_MINUS_INFINITY_MS),
        Temporal::Finite(stamp) => {
            let number = stamp_number(unit, stamp)?;
            let exact = match stamp_of(unit, number) {
                Some(Temporal::Finite(carried)) if carried == stamp => {
                    pgtext::is_plain_timestamp(text) || prints_as(out, text, |o| pgtext::push_timestamp(o, carried))
                }
                _ => false,
            };
            out.integer(number);
            return Ok(exact_if(exact));
        }
    };
    out.integer(number);
    Ok(Fidelity::NeedsText)
}

fn infinite(unit: Unit, millis: i64) -> i64 {
    match unit {
        Unit::Millis => millis,
        Unit::Micros => millis * 1_000,
        Unit::Nanos => millis.saturating_mul(1_000_000),
    }
}

fn stamp_number(unit: Unit, stamp: Stamp) -> Result<i64, Unfit> {
    let Stamp { seconds, micros } = stamp;
    match unit {
        Unit::Millis => Ok(seconds * 1_000 + i64::from(micros / 1_000)),
        // As java.util.concurrent.TimeUnit does it: beyond 294247-01-10 the seconds saturate, then the sum wraps.
        Unit::Micros => Ok(seconds.saturating_mul(1_000_000).wrapping_add(i64::from(micros))),
        Unit::Nanos => {
            let nanos = i128::from(seconds) * 1_000_000_000 + i128::from(micros) * 1_000;
            i64::try_from(nanos).map_err(|_| Unfit::NoForm)
        }
    }
}

/// What a timestamp's number stands for; `None` beyond what Postgres holds. The number of infinity is also that of
/// 294247-01-10 04:00:25.2, whose text therefore always rides beside it.
pub fn stamp_of(unit: Unit, number: i64) -> Option<Temporal<Stamp>> {
    let stamp = match unit {
        Unit::Millis => Stamp::from_millis(number),
        Unit::Micros => Stamp::from_micros(number),
        Unit::Nanos => Stamp::from_micros(number.div_euclid(1_000)),
    };
    if number == infinite(unit, TIMESTAMP_INFINITY_MS) {
        return Some(Temporal::Infinity);
    }
    if number == infinite(unit, TIMESTAMP_MINUS_INFINITY_MS) {
        return Some(Temporal::MinusInfinity);
    }
    stamp.is_valid().then_some(Temporal::Finite(stamp))
}

fn timestamptz(digits: u8, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    match pgtext::parse_timestamptz(text).ok_or(Unfit::NotOfItsType)? {
        Temporal::Infinity | Temporal::MinusInfinity => {
            out.plain(|out| out.extend_from_slice(text));
            Ok(Fidelity::Exact)
        }
        Temporal::Finite(stamp) => {
            let same =
                pgtext::is_plain_timestamptz(text) || prints_as(out, text, |o| pgtext::push_timestamptz(o, stamp));
            let exact = stamp.is_valid() && same;
            out.plain(|out| pgtext::push_iso_utc(out, stamp, digits));
            Ok(exact_if(exact))
        }
    }
}

fn interval(encoding: &Encoding, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let interval = match pgtext::parse_interval(text).ok_or(Unfit::NotOfItsType)? {
        Temporal::Finite(interval) => interval,
        infinite => {
            // Debezium makes these zero. The ends of the range are as near as a number comes.
            let most = if infinite == Temporal::Infinity { i64::MAX } else { i64::MIN };
            match encoding {
                Encoding::IntervalMicros => out.integer(most),
                _ => out.string(utf8(text)?),
            }
            return Ok(Fidelity::NeedsText);
        }
    };
    let pgtext::Interval { months, days, micros } = interval;
    if *encoding == Encoding::IntervalMicros {
        let total = i128::from(months) * MONTH_MICROS + i128::from(days) * DAY_MICROS + i128::from(micros);
        out.integer(i64::try_from(total).unwrap_or(if total < 0 { i64::MIN } else { i64::MAX }));
        return Ok(Fidelity::NeedsText);
    }
    let (hours, rest) = (micros / 3_600_000_000, micros % 3_600_000_000);
    let (minutes, rest) = (rest / 60_000_000, rest % 60_000_000);
    let sign = if rest < 0 { "-" } else { "" };
    let seconds = format!("{sign}{}.{:06}", (rest / 1_000_000).abs(), (rest % 1_000_000).abs());
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    let iso = format!("P{}Y{}M{days}DT{hours}H{minutes}M{seconds}S", months / 12, months % 12);
    out.plain(|out| out.extend_from_slice(iso.as_bytes()));
    Ok(Fidelity::NeedsText)
}

fn hstore(encoding: &Encoding, text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let entries = hstore_entries(utf8(text)?).ok_or(Unfit::NotOfItsType)?;
    if *encoding == Encoding::HstoreMap {
        out.begin_map(true);
        for (key, value) in &entries {
            out.map_key();
            out.string(key);
            out.map_value();
            match value {
                Some(value) => out.string(value),
                None => out.null(),
            }
        }
        out.end_map();
        return Ok(Fidelity::NeedsText);
    }
    let mut json = Vec::new();
    json.push(b'{');
    for (i, (key, value)) in entries.iter().enumerate() {
        if i > 0 {
            json.push(b',');
        }
        let quoted = |text: &str| serde_json::to_string(text).expect("a string is JSON");
        json.extend_from_slice(quoted(key).as_bytes());
        json.push(b':');
        json.extend_from_slice(value.as_ref().map_or_else(|| "null".to_owned(), |value| quoted(value)).as_bytes());
    }
    json.push(b'}');
    out.string(utf8(&json)?);
    Ok(Fidelity::NeedsText)
}

type HstoreEntry = (String, Option<String>);

/// `"key"=>"value", "key"=>NULL`, as hstore_out prints it.
fn hstore_entries(text: &str) -> Option<Vec<HstoreEntry>> {
    let mut entries = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (key, after) = quoted(rest)?;
        rest = after.strip_prefix("=>")?;
        let value = match rest.strip_prefix("NULL") {
            Some(after) => {
                rest = after;
                None
            }
            None => {
                let (value, after) = quoted(rest)?;
                rest = after;
                Some(value)
            }
        };
        entries.push((key, value));
        match rest.strip_prefix(", ") {
            Some(after) if !after.is_empty() => rest = after,
            Some(_) => return None,
            None if rest.is_empty() => {}
            None => return None,
        }
    }
    Some(entries)
}

/// A string in double quotes with backslash escapes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut found = String::new();
    let mut chars = inside.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return Some((found, &inside[at + 1..])),
            '\\' => found.push(chars.next()?.1),
            other => found.push(other),
        }
    }
    None
}

fn point(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let inside = text.strip_prefix(b"(").and_then(|text| text.strip_suffix(b")")).ok_or(Unfit::NotOfItsType)?;
    let comma = inside.iter().position(|b| *b == b',').ok_or(Unfit::NotOfItsType)?;
    let (x, y) = (&inside[..comma], &inside[comma + 1..]);
    // Well-known binary, little-endian, of a point.
    let mut wkb = vec![1, 1, 0, 0, 0];
    for number in [x, y] {
        let number: f64 = utf8(number)?.parse().map_err(|_| Unfit::NotOfItsType)?;
        wkb.extend_from_slice(&number.to_le_bytes());
    }
    out.begin_struct();
    out.field("x");
    float(x, out)?;
    out.field("y");
    float(y, out)?;
    out.field("wkb");
    out.bytes(&wkb);
    out.field("srid");
    out.null();
    out.end_struct();
    Ok(Fidelity::NeedsText)
}

/// PostGIS prints extended well-known binary in hex: byte order, type with flags, and the SRID if a flag says so.
fn geometry(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    const HAS_SRID: u32 = 0x2000_0000;
    let wkb = hex::decode(text).map_err(|_| Unfit::NotOfItsType)?;
    let word = |at: usize| {
        let bytes: [u8; 4] = wkb.get(at..at + 4)?.try_into().ok()?;
        Some(if wkb[0] == 1 { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let of = word(1).ok_or(Unfit::NotOfItsType)?;
    let srid = match of & HAS_SRID {
        0 => None,
        // Its field is an int32; PostGIS' own are below a million.
        _ => Some(word(5).and_then(|srid| i32::try_from(srid).ok()).ok_or(Unfit::NotOfItsType)?),
    };
    out.begin_struct();
    out.field("wkb");
    out.bytes(&wkb);
    out.field("srid");
    match srid {
        Some(srid) => out.integer(i64::from(srid)),
        None => out.null(),
    }
    out.end_struct();
    Ok(Fidelity::NeedsText)
}

fn vector(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let inside = text.strip_prefix(b"[").and_then(|text| text.strip_suffix(b"]")).ok_or(Unfit::NotOfItsType)?;
    out.begin_array();
    for number in inside.split(|b| *b == b',').filter(|_| !inside.is_empty()) {
        out.element();
        float(number, out)?;
    }
    out.end_array();
    Ok(Fidelity::NeedsText)
}

/// `{1:1,3:-2.5}/5`
fn sparse_vector(text: &[u8], out: &mut impl Writer) -> Result<Fidelity, Unfit> {
    let text = utf8(text)?;
    let (entries, dimensions) =
        text.strip_prefix('{').and_then(|text| text.split_once("}/")).ok_or(Unfit::NotOfItsType)?;
    // pgvector's limit is 10^9. Debezium's schema says int16, which Avro writes as an int.
    let integer = |text: &str| text.parse::<i32>().map(i64::from).map_err(|_| Unfit::NotOfItsType);
    out.begin_struct();
    out.field("dimensions");
    out.integer(integer(dimensions)?);
    out.field("vector");
    out.begin_map(false);
    for entry in entries.split(',').filter(|entry| !entry.is_empty()) {
        let (index, number) = entry.split_once(':').ok_or(Unfit::NotOfItsType)?;
        out.map_key();
        out.integer(integer(index)?);
        out.map_value();
        float(number.as_bytes(), out)?;
    }
    out.end_map();
    out.end_struct();
    Ok(Fidelity::NeedsText)
}

/// An array as array_out prints it. Bounds are in `ls-text` alone.
fn array<W: Writer>(element: &Encoding, delimiter: u8, text: &[u8], out: &mut W) -> Result<Fidelity, Unfit> {
    let body = parts::array_body(text).ok_or(Unfit::NotOfItsType)?;
    let (mut at, mut depth) = (0, 0usize);
    let nests = out.nests();
    // Braces inside quotes belong to elements, so those outside are dimensions.
    while let Some(byte) = body.get(at) {
        match byte {
            b'{' => {
                if depth == 0 || nests {
                    if depth > 0 {
                        out.element();
                    }
                    out.begin_array();
                }
                depth += 1;
                at += 1;
            }
            b'}' => {
                depth = depth.checked_sub(1).ok_or(Unfit::NotOfItsType)?;
                if depth == 0 || nests {
                    out.end_array();
                }
                at += 1;
                if depth == 0 {
                    break;
                }
            }
            byte if *byte == delimiter => at += 1,
            _ => {
                let (value, end) = parts::array_element(body, at, delimiter).ok_or(Unfit::NotOfItsType)?;
                out.element();
                let written = value.map(|value| write(element, &value, out));
                match written {
                    None | Some(Err(Unfit::Unsayable)) => out.null(),
                    Some(written) => drop(written?),
                }
                at = end;
            }
        }
    }
    if depth != 0 || at != body.len() {
        return Err(Unfit::NotOfItsType);
    }
    Ok(Fidelity::NeedsText)
}

/// Builds a [`Value`].
#[derive(Default)]
pub struct TreeWriter {
    done: Option<Value>,
    open: Vec<Value>,
    keys: Vec<Value>,
    /// The field of each open struct.
    fields: Vec<&'static str>,
    scratch: Vec<u8>,
}

impl TreeWriter {
    /// What was written; `None` if nothing was.
    pub fn value(self) -> Option<Value> {
        self.done
    }

    fn put(&mut self, value: Value) {
        match self.open.last_mut() {
            None => self.done = Some(value),
            Some(Value::Array(elements)) => elements.push(value),
            Some(Value::Struct(fields)) => {
                fields.push((self.fields.last().expect("a field was named"), value));
            }
            Some(Value::Map(entries)) => match self.keys.pop() {
                Some(key) if key != Value::Null => entries.push((key, value)),
                _ => self.keys.push(value),
            },
            Some(_) => unreachable!("only collections are open"),
        }
    }

    fn close(&mut self) {
        let value = self.open.pop().expect("what ends was begun");
        self.put(value);
    }
}

impl Writer for TreeWriter {
    fn null(&mut self) {
        self.put(Value::Null);
    }

    fn boolean(&mut self, value: bool) {
        self.put(Value::Boolean(value));
    }

    fn integer(&mut self, value: i64) {
        self.put(Value::Integer(value));
    }

    fn digits(&mut self, text: &[u8]) {
        // What does not fit is not shown; the column's own text is refused by Postgres before it comes here.
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        self.put(number.map_or(Value::Null, Value::Integer));
    }

    fn float(&mut self, text: &[u8]) {
        self.put(Value::Float(String::from_utf8_lossy(text).into_owned()));
    }

    fn string(&mut self, text: &str) {
        self.put(Value::String(text.to_owned()));
    }

    fn plain(&mut self, print: impl FnOnce(&mut Vec<u8>)) {
        let mut text = Vec::new();
        print(&mut text);
        self.put(Value::String(String::from_utf8_lossy(&text).into_owned()));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.put(Value::Bytes(bytes.to_vec()));
    }

    fn bytea(&mut self, text: &[u8]) -> Option<()> {
        let bytes = hex::decode(text.strip_prefix(b"\\x")?).ok()?;
        self.put(Value::Bytes(bytes));
        Some(())
    }

    fn begin_array(&mut self) {
        self.open.push(Value::Array(Vec::new()));
    }

    fn element(&mut self) {}

    fn end_array(&mut self) {
        self.close();
    }

    fn begin_map(&mut self, _text_keys: bool) {
        self.open.push(Value::Map(Vec::new()));
    }

    fn map_key(&mut self) {
        // Marks that a key comes next.
        self.keys.push(Value::Null);
    }

    fn map_value(&mut self) {}

    fn end_map(&mut self) {
        self.close();
    }

    fn begin_struct(&mut self) {
        self.open.push(Value::Struct(Vec::new()));
        self.fields.push("");
    }

    fn field(&mut self, name: &'static str) {
        *self.fields.last_mut().expect("a struct is open") = name;
    }

    fn end_struct(&mut self) {
        self.fields.pop();
        self.close();
    }

    fn nests(&self) -> bool {
        true
    }

    fn scratch(&mut self) -> &mut Vec<u8> {
        &mut self.scratch
    }
}
