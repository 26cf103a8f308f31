//! The text of a `format` file, and records read by it: `cargo fuzz run format` in `kprobes/`.
//!
//! With a stable compiler: `RUSTC_BOOTSTRAP=1 cargo fuzz run format`. Seeds: `python3 fuzz/seeds.py fuzz/corpus`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use socktrail_kprobes::{Array, Decoder, Format, Text, sample, tracepoint};

sample! {
    /// Fields of `src/formats/kprobe.txt`: an array, numbers and a string.
    struct Probed {
        a1: Array<u64, 64> = "",
        n: u8 = "",
        m: i16 = "",
        st: Text = "",
    }
}

tracepoint! {
    /// Fields of `src/formats/inet_sock_set_state.txt`.
    struct State {
        sock: u64 = "skaddr",
        family: u16 = "family",
        source: [u8; 4] = "saddr",
        source_v6: [u8; 16] = "saddr_v6",
    }
}

fuzz_target!(|data: &[u8]| {
    // A record, then the text. The length of the record is arbitrary.
    let Some((length, data)) = data.split_first_chunk() else { return };
    let (raw, text) = data.split_at(usize::from(u16::from_le_bytes(*length)).min(data.len()));
    let Ok(format) = Format::parse(text) else { return };
    for field in &format.fields {
        assert!(!field.name.is_empty());
        assert_eq!(format.field(&field.name).map(|found| &found.name), Some(&field.name));
        let (offset, size) = (usize::from(field.offset), usize::from(field.size));
        if field.number(raw).is_some() {
            assert!(size <= 8 && offset + size <= raw.len());
        }
        if let Some(bytes) = field.bytes(raw) {
            assert!(bytes.len() <= raw.len());
        }
    }
    if let Ok(decoder) = Decoder::<Probed>::new(&format)
        && let Some(probed) = decoder.decode(raw)
    {
        assert_eq!(probed.a1.bytes(raw).len(), 512);
        assert!(probed.st.bytes(raw).len() <= raw.len());
    }
    if let Ok(decoder) = Decoder::<State>::new(&format)
        && let Some(state) = decoder.decode(raw)
    {
        let field = format.field("saddr").map(|field| usize::from(field.offset));
        assert_eq!(field.map(|at| &raw[at..at + 4]), Some(&state.source[..]));
    }
    // A recording stores this text. Where it can be parsed, it must give the same id and as many fields.
    let text = format.to_string();
    if let Ok(again) = Format::parse(text.as_bytes()) {
        assert_eq!((again.id, again.fields.len()), (format.id, format.fields.len()), "{text}");
    }
});
