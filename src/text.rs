//! Texts for people, such as names. They are kept in one spelling (NFC), and nothing in them is hidden: what
//! cannot be seen, or turns the direction of what follows, could make one name look like another.
//!
//! A few characters that have no look of their own change that of their neighbours, and belong to how people
//! write. They are taken where they do, and nowhere else:
//!
//! | character | where |
//! |---|---|
//! | zero-width joiner | between two emoji; beside the virama of an Indic script |
//! | zero-width non-joiner | between two letters that would join (Persian); beside a virama |
//! | variation selector | after an emoji, an ideograph or a Mongolian letter |
//! | tag | in the flag of a region: a black flag, tags, the end tag |
//!
//! And lengths of time, as people write them.

use std::time::Duration;

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{
    BidiControl, CanonicalCombiningClass, DefaultIgnorableCodePoint, Emoji, EmojiModifier,
    ExtendedPictographic, GeneralCategory, JoiningType, NoncharacterCodePoint, Script, UnifiedIdeograph,
    VariationSelector,
};
use icu_properties::{CodePointMapData, CodePointSetData};
use jiff::{Span, SpanRelativeTo};
use unicode_segmentation::UnicodeSegmentation;

/// Bytes that a character may take on average. A person's character may be many of Unicode's.
const BYTES_EACH: usize = 10;

/// A longer text is no length of time.
const DURATION_BYTES_MAX: usize = 40;

const JOINER: char = '\u{200d}';
const NON_JOINER: char = '\u{200c}';
const EMOJI_PRESENTATION: char = '\u{fe0f}';
const BLACK_FLAG: char = '\u{1f3f4}';
const END_TAG: char = '\u{e007f}';

/// Reads a text of 1 to `max` characters, as people count them (grapheme clusters), and at most ten bytes for
/// each; without spaces around it, and in NFC. An `Err` says what it must be.
pub fn words(text: &str, max: usize) -> Result<String, String> {
    let text = ComposingNormalizerBorrowed::new_nfc().normalize(text.trim()).into_owned();
    let bytes_max = max * BYTES_EACH;
    if text.is_empty() || text.len() > bytes_max || text.graphemes(true).count() > max {
        return Err(format!("must have 1 to {max} characters, and at most {bytes_max} bytes"));
    }
    let characters: Vec<char> = text.chars().collect();
    match (0..characters.len()).find(|at| is_hidden(characters[*at]) && !belongs(&characters, *at)) {
        None => Ok(text),
        Some(at) => Err(format!(
            "must not have control characters, bidi controls or invisible characters: U+{:04X} is one",
            u32::from(characters[at])
        )),
    }
}

/// Reads a length of time: an ISO 8601 duration such as `PT15M`, or a shorter form such as `15m`. A day has 24 hours;
/// months and years, which differ in length, are refused. An `Err` says what it must be.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<Span>().ok().filter(|_| text.len() <= DURATION_BYTES_MAX);
    let length = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
    length.and_then(|length| Duration::try_from(length).ok()).ok_or_else(|| {
        "must be a duration in weeks, days, hours, minutes and seconds, such as P2D or 15m".into()
    })
}

/// Whether a character moves what is written after it: to another line, or in another direction.
pub fn is_steering(character: char) -> bool {
    let category = CodePointMapData::<GeneralCategory>::new().get(character);
    matches!(
        category,
        GeneralCategory::Control | GeneralCategory::LineSeparator | GeneralCategory::ParagraphSeparator
    ) || CodePointSetData::new::<BidiControl>().contains(character)
}

/// Whether a character has no look of its own.
fn is_hidden(character: char) -> bool {
    let is_format = CodePointMapData::<GeneralCategory>::new().get(character) == GeneralCategory::Format;
    let is_blank = matches!(
        character,
        '\u{2800}' // a Braille pattern without dots
        | '\u{1d159}' // a note without a head
        | '\u{fffc}' // the place of an object
    );
    is_steering(character)
        || is_format && !is_number_sign(character)
        || is_blank
        || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(character)
        || CodePointSetData::new::<NoncharacterCodePoint>().contains(character)
}

/// Signs that are written around the digits after them: formats that are seen.
fn is_number_sign(character: char) -> bool {
    matches!(
        character,
        '\u{600}'..='\u{605}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{110bd}' | '\u{110cd}'
    )
}

/// Whether the hidden character at a place does there what it is for.
fn belongs(text: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).map(|before| text[before]);
    let (Some(before), after) = (before, text.get(at + 1).copied()) else { return false };
    match text[at] {
        JOINER => joins_emoji(before, after) || is_beside_virama(before, after),
        NON_JOINER => parts_letters(text, at) || is_beside_virama(before, after),
        '\u{e0020}'..=END_TAG => is_in_flag(text, at),
        selector if CodePointSetData::new::<VariationSelector>().contains(selector) => has_variants(before),
        _ => false,
    }
}

fn joins_emoji(before: char, after: Option<char>) -> bool {
    let is_pictographic = |character| CodePointSetData::new::<ExtendedPictographic>().contains(character);
    let ends_emoji = is_pictographic(before)
        || CodePointSetData::new::<EmojiModifier>().contains(before)
        || matches!(before, EMOJI_PRESENTATION | END_TAG);
    ends_emoji && after.is_some_and(is_pictographic)
}

fn is_beside_virama(before: char, after: Option<char>) -> bool {
    let is_virama = |character| {
        CodePointMapData::<CanonicalCombiningClass>::new().get(character) == CanonicalCombiningClass::Virama
    };
    is_virama(before) || before.is_alphabetic() && after.is_some_and(is_virama)
}

/// Whether the letters around a place would join (RFC 5892, appendix A.1).
fn parts_letters(text: &[char], at: usize) -> bool {
    let joining = |character: &char| CodePointMapData::<JoiningType>::new().get(*character);
    let is_seen = |joining: &JoiningType| *joining != JoiningType::Transparent;
    let before = text[..at].iter().rev().map(joining).find(is_seen);
    let after = text[at + 1..].iter().map(joining).find(is_seen);
    matches!(before, Some(JoiningType::DualJoining | JoiningType::LeftJoining))
        && matches!(after, Some(JoiningType::DualJoining | JoiningType::RightJoining))
}

/// Whether the tag at a place is of a black flag with an end tag.
fn is_in_flag(text: &[char], at: usize) -> bool {
    let is_tag = |character: &&char| ('\u{e0020}'..=END_TAG).contains(*character);
    let end = text[at..].iter().take_while(is_tag).position(|tag| *tag == END_TAG);
    let base = text[..at].iter().rev().find(|character| !is_tag(character) || **character == END_TAG);
    end.is_some() && base == Some(&BLACK_FLAG)
}

fn has_variants(base: char) -> bool {
    CodePointSetData::new::<Emoji>().contains(base)
        || CodePointSetData::new::<UnifiedIdeograph>().contains(base)
        || CodePointMapData::<Script>::new().get(base) == Script::Mongolian
}

/// Nobody is shown settings: there are passwords in some of them, and by mistake in others.
macro_rules! never_shown {
    ($($settings:ident),*) => {$(
        impl std::fmt::Debug for $settings {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($settings), " { … }"))
            }
        }
    )*};
}
pub(crate) use never_shown;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_read_in_both_forms_and_in_units_of_one_length() {
        for (text, seconds) in [
            ("PT15M", 900),
            ("15m", 900),
            ("P2D", 172_800),
            ("30d", 2_592_000),
            ("1h 30m", 5_400),
            ("1w 2d", 777_600),
            ("P1DT1H", 90_000),
            ("PT0S", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        let long = format!("{}15m", " ".repeat(40));
        for wrong in ["", "x", "15", "-PT5M", "-1d", "P1M", "1 month", "1y", "soon", "5m ago", &long] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_hides_or_turns_a_name_is_refused_and_named() {
        for hidden in [
            "\u{0}",
            "\u{7f}",
            "\u{85}",
            "\u{ad}",
            "\u{34f}",
            "\u{61c}",
            "\u{115f}",
            "\u{1160}",
            "\u{17b4}",
            "\u{180e}",
            "\u{200b}",
            "\u{200c}",
            "\u{200d}",
            "\u{200e}",
            "\u{2028}",
            "\u{202e}",
            "\u{2060}",
            "\u{2066}",
            "\u{2069}",
            "\u{206a}",
            "\u{2800}",
            "\u{3164}",
            "\u{fe0f}",
            "\u{feff}",
            "\u{ffa0}",
            "\u{fff9}",
            "\u{ffff}",
            "\u{1d159}",
            "\u{1d173}",
            "\u{e0001}",
            "\u{e0041}",
            "\u{e0100}",
        ] {
            for text in [format!("Kim{hidden}Lee"), format!("{hidden}Kim"), format!("김{hidden}")] {
                if text.trim().chars().count() < text.chars().count() {
                    continue;
                }
                let refused = words(&text, 100).expect_err(&format!("{text:?}"));
                let name = format!("U+{:04X}", u32::from(hidden.chars().next().unwrap()));
                assert!(refused.contains(&name), "{refused}");
            }
        }
    }

    #[test]
    fn what_people_write_is_taken_as_it_is() {
        for name in [
            "홍길동",
            "Zoë O’Brien-Şahin",
            "नरेन्द्र",
            "क\u{94d}\u{200d}ष",     // a half form
            "র\u{200d}\u{9cd}যাব",    // ra with ya-phalaa
            "ශ\u{dca}\u{200d}රී ලංකා", // Sri Lanka
            "علی\u{200c}رضا",        // Persian
            "می\u{200c}خواهم",
            "👨\u{200d}👩\u{200d}👧",
            "👩🏽\u{200d}🚀",
            "❤\u{fe0f}\u{200d}🔥",
            "🏳\u{fe0f}\u{200d}🌈",
            "1\u{fe0f}\u{20e3}",
            "🏴\u{e0067}\u{e0062}\u{e0065}\u{e006e}\u{e0067}\u{e007f}",
            "葛\u{e0100}城",
            "ᠮᠣᠩᠭᠣᠯ",
            "שלום",
            "a\u{3000}b",
        ] {
            assert_eq!(words(name, 100).as_deref(), Ok(name), "{name:?}");
        }
    }

    #[test]
    fn a_joiner_is_not_taken_where_it_does_nothing() {
        for name in [
            "a\u{200d}b",
            "👨\u{200d}",
            "👨\u{200d}a",
            "a\u{200d}👩",
            "ا\u{200c}ب", // alef joins nothing after it
            "\u{200c}ب",
            "a\u{fe0f}",
            "🏴\u{e0067}\u{e0062}",
            "👨\u{e0067}\u{e007f}",
            "🏴\u{e007f}\u{e0067}\u{e007f}",
        ] {
            assert!(words(name, 100).is_err(), "{name:?}");
        }
    }

    #[test]
    fn length_is_what_people_count_in_one_spelling_and_bounded_in_bytes() {
        let decomposed = "\u{1112}\u{1161}\u{11ab}".repeat(40);
        assert_eq!(words(&decomposed, 40).as_deref(), Ok("한".repeat(40).as_str()));
        assert!(words(&"한".repeat(41), 40).is_err());
        assert_eq!(words("  e\u{301} ", 1).as_deref(), Ok("é"));
        assert!(words(&"👨\u{200d}👩\u{200d}👧".repeat(10), 20).is_ok());
        assert!(words(&format!("e{}", "\u{301}".repeat(101)), 20).is_err(), "one character, of 202 bytes");
        for empty in ["", " ", "\u{3000}", "\u{a0}\t"] {
            assert!(words(empty, 20).is_err(), "{empty:?}");
        }
    }
}
