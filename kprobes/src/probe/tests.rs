use super::*;
use crate::{Kind, Term};

const ALL: Features = Features {
    arrays: true,
    user_memory: true,
    arguments: true,
    maxactive: true,
    comm: true,
    constants: true,
    strings: true,
    word: WordSize::Eight,
};

const KRETPROBE: ProbeKind = ProbeKind::Kretprobe { maxactive: None };

fn names(_: &str, name: &str) -> Option<Term> {
    match name {
        "a" => Some(Term::Argument(1)),
        "s.f" => Some(Term::Offset(16)),
        "s.bits" => Some(Term::BitField { offset: 17, bits: 8 }),
        _ => None,
    }
}

fn built(kind: ProbeKind, fetches: &[Fetch<'_>], features: Features) -> Result<Line, Error> {
    let mut events = request(kind, fetches, features).events("ip_local_out")?;
    assert_eq!(events.len(), 1);
    Ok(events.remove(0).line)
}

fn request<'a>(kind: ProbeKind, fetches: &'a [Fetch<'a>], features: Features) -> Request<'a> {
    let (group, name, function) = ("g_1_2_0", "probe", "ip_local_out");
    Request { group, name, function, kind, fetches, resolver: &names, features }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_line_of_every_type() {
    let fetches = [
        Fetch::new("one", "{a}", Type::U64),
        Fetch::new("two", "+{s.f}({a})", Type::S16),
        Fetch::new("three", "+0({a})", Type::U64Array(64)),
        Fetch::new("four", "+0({a})", Type::Bytes(16)),
        Fetch::new("five", "+u0(+{s.f}({a}))", Type::String),
    ];
    let line = built(ProbeKind::Kprobe, &fetches, ALL).unwrap();
    assert_eq!(
        line.text(),
        "p:g_1_2_0/probe ip_local_out one=%di:u64 two=+16(%di):s16 three=+0(%di):x64[64] four=+0(%di):x8[16] \
         five=+u0(+16(%di)):string"
    );
    assert_eq!(line.without_maxactive(), None);
    let comm = [Fetch::new("comm", "$comm", Type::String).optional(true)];
    assert_eq!(built(ProbeKind::Kprobe, &comm, ALL).unwrap().text(), "p:g_1_2_0/probe ip_local_out comm=$comm:string");
    assert_eq!(built(ProbeKind::Kprobe, &comm, Features::default()).unwrap().text(), "p:g_1_2_0/probe ip_local_out");
    let line = built(ProbeKind::Kprobe, &fetches[4..], Features::default()).unwrap();
    assert_eq!(line.text(), "p:g_1_2_0/probe ip_local_out five=+0(+16(%di)):string");
}

#[test]
#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn on_a_kernel_of_32_bits_words_are_short() {
    let fetches = [
        Fetch::new("one", "{a}", Type::Word),
        Fetch::new("two", "+{word}(+{s.f}({a}))", Type::Word),
        Fetch::new("three", "+{s.f}({a})", Type::U64),
    ];
    let features = Features { word: WordSize::Four, ..ALL };
    let text = built(ProbeKind::Kprobe, &fetches, features).unwrap().text();
    assert_eq!(text, "p:g_1_2_0/probe ip_local_out one=%ax:u32 two=+4(+16(%ax)):u32 three=+16(%ax):u64");
    let value = [Fetch::new("rv", "$retval", Type::SignedWord)];
    assert_eq!(built(KRETPROBE, &value, features).unwrap().text(), "r:g_1_2_0/probe ip_local_out rv=$retval:s32");
    assert_eq!(built(KRETPROBE, &value, ALL).unwrap().text(), "r:g_1_2_0/probe ip_local_out rv=$retval:s64");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn optional_arguments_are_left_out_if_they_are_unknown() {
    let fetches = [
        Fetch::new("one", "{a}", Type::U64),
        Fetch::new("two", "+{s.no_such}({a})", Type::U32).optional(true),
        Fetch::new("three", "+{s.f}({a})", Type::U32).optional(true),
    ];
    let line = built(ProbeKind::Kprobe, &fetches, ALL).unwrap();
    assert_eq!(line.text(), "p:g_1_2_0/probe ip_local_out one=%di:u64 three=+16(%di):u32");
    let needed = [fetches[1].clone().optional(false)];
    assert_eq!(built(ProbeKind::Kprobe, &needed, ALL).unwrap_err().kind(), Kind::Unresolved);
    let malformed = [Fetch::new("two", "+{s.f+}({a})", Type::U32).optional(true)];
    let error = built(ProbeKind::Kprobe, &malformed, ALL).unwrap_err();
    assert_eq!(error.kind(), Kind::Declaration, "a malformed template is an error even if it is optional");
}

/// As `parse_probe_arg` of the kernel's trace_probe.c reads it: width, first bit, and the number that it is fetched as.
#[test]
#[cfg(target_arch = "x86_64")]
fn only_the_bits_of_a_bit_field_are_fetched() {
    let of = |kind| built(ProbeKind::Kprobe, &[Fetch::new("one", "+{s.bits}({a})", kind)], ALL).map(|line| line.text());
    assert_eq!(of(Type::U16).unwrap(), "p:g_1_2_0/probe ip_local_out one=+17(%di):b8@0/16");
    assert_eq!(of(Type::U8).unwrap(), "p:g_1_2_0/probe ip_local_out one=+17(%di):b8@0/8");
    for kind in [Type::S16, Type::U64Array(2), Type::String] {
        assert_eq!(of(kind).unwrap_err().kind(), Kind::Declaration, "{kind}");
    }
}

#[test]
fn lines_of_kretprobes() {
    let fetches = [Fetch::new("rv", "$retval", Type::S32)];
    let text = |maxactive, features| built(ProbeKind::Kretprobe { maxactive }, &fetches, features).unwrap().text();
    assert_eq!(text(None, ALL), "r:g_1_2_0/probe ip_local_out rv=$retval:s32");
    assert_eq!(text(Some(512), ALL), "r512:g_1_2_0/probe ip_local_out rv=$retval:s32");
    assert_eq!(text(Some(512), Features::default()), text(None, ALL));
    assert_eq!(text(Some(1 << 30), ALL), "r4096:g_1_2_0/probe ip_local_out rv=$retval:s32");
    let line =
        built(ProbeKind::Kretprobe { maxactive: Some(9) }, &[Fetch::new("first", "{a}", Type::U64)], ALL).unwrap();
    assert_eq!(line.text(), "r9:g_1_2_0/probe ip_local_out first=$arg1:u64");
    assert_eq!(line.without_maxactive().unwrap(), "r:g_1_2_0/probe ip_local_out first=$arg1:u64");
}

#[test]
fn too_much_is_refused_before_the_kernel_sees_it() {
    let many = |count, kind| (0..count).map(|i| Fetch::new(format!("v{i}"), "{a}", kind)).collect::<Vec<_>>();
    assert!(built(ProbeKind::Kprobe, &many(128, Type::U64), ALL).is_ok());
    for (fetches, what) in [
        (many(129, Type::U64), "fetch arguments"),
        (many(4, Type::U64Array(64)), "bytes in a record"),
        (vec![Fetch::new("v", format!("{}%di{}", "+8(".repeat(1100), ")".repeat(1100)), Type::U64)], "bytes of text"),
    ] {
        match built(ProbeKind::Kprobe, &fetches, ALL) {
            Err(Error::TooLarge { what: said, .. }) => assert_eq!(said, what),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn without_arrays_a_probe_takes_several_events() {
    let fetches = [
        Fetch::new("count", "+8({a})", Type::S32),
        Fetch::new("path", "+0(+{s.f}({a}))", Type::U64Array(64)),
        Fetch::new("more", "+u512(+{s.f}({a}))", Type::U64Array(64)),
        Fetch::new("odd", "+{s.f}({a})", Type::Bytes(7)),
    ];
    let events = request(ProbeKind::Kprobe, &fetches, Features::default()).events("ip_local_out").unwrap();
    let counts: Vec<_> = events.iter().map(|event| (event.name.as_str(), event.parts.len())).collect();
    assert_eq!(counts, [("probe", 128), ("probe_piece_1", 4)]);
    let text = events[0].line.text();
    assert!(
        text.starts_with("p:g_1_2_0/probe ip_local_out count=+8(%di):s32 path_0=+0(+16(%di)):u64 path_8=+8("),
        "{text}"
    );
    assert!(text.ends_with(" more_496=+1008(+16(%di)):u64"), "{text}");
    assert_eq!(
        events[1].line.text(),
        "p:g_1_2_0/probe_piece_1 ip_local_out more_504=+1016(+16(%di)):u64 \
         odd_0=+16(%di):u32 odd_4=+20(%di):u16 odd_6=+22(%di):u8"
    );
    assert!(events.iter().all(|event| event.line.text().len() <= MAX_LINE));
    assert_eq!(request(ProbeKind::Kprobe, &fetches[1..2], ALL).events("ip_local_out").unwrap().len(), 1);
}

#[test]
fn lines_of_several_events_have_room_for_a_maxactive() {
    let fetches = ["first", "second"]
        .map(|name| Fetch::new(format!("{name}_{}", "x".repeat(20)), "+8($retval)", Type::U64Array(64)));
    let kind = ProbeKind::Kretprobe { maxactive: Some(MAX_MAXACTIVE) };
    let features = Features { maxactive: true, ..Features::default() };
    // Each length of the function's name leaves another number of bytes at the end of the first line.
    for length in 1..=60 {
        let events = request(kind, &fetches, features).events(&"f".repeat(length)).unwrap();
        let longest = events.iter().map(|event| event.line.text().len()).max().unwrap();
        assert!(events.len() == 2 && longest <= MAX_LINE, "{length}: {} events, {longest} bytes", events.len());
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn without_arrays_strings_have_events_of_their_own() {
    let name = |number: usize| Fetch::new(format!("name_{number}"), "+0(+{s.f}({a}))", Type::StringWindow(16));
    let mut fetches = vec![Fetch::new("first", "+8({a})", Type::U64)];
    fetches.extend((0..9).map(name));
    fetches.push(Fetch::new("last", "{a}", Type::U32));
    let of = |kind, features| request(kind, &fetches, features).events("ip_local_out").unwrap();
    let events = of(ProbeKind::Kprobe, Features { strings: true, ..Features::default() });
    assert_eq!(events[0].line.text(), "p:g_1_2_0/probe ip_local_out first=+8(%di):u64 last=%di:u32");
    assert_eq!(
        events[2].line.text(),
        "p:g_1_2_0/probe_piece_2 ip_local_out name_7=+0(+16(%di)):string name_8=+0(+16(%di)):string"
    );
    let places: Vec<_> =
        events.iter().map(|event| event.parts.iter().map(|part| (part.at, part.size)).collect::<Vec<_>>()).collect();
    assert_eq!(places[0], [(0, 8), (8 + 9 * 128, 4)]);
    assert_eq!(places[1], (0..7).map(|number| (8 + number * 128, 128)).collect::<Vec<_>>());
    // With names of 255 bytes, each event fits perf's buffer of 2048 bytes.
    let largest = |event: &Event| HEAD + event.parts.len() * (4 + 256) + 8;
    assert!(events[1..].iter().all(|event| largest(event) <= 2048));

    // Where the kernel panics at a warning, and for the return of a function, the words are fetched.
    for events in [of(ProbeKind::Kprobe, Features::default()), of(KRETPROBE, Features { strings: true, ..ALL })] {
        assert!(events.iter().all(|event| !event.line.text().contains("string")));
    }
    let whole = of(ProbeKind::Kprobe, ALL);
    assert!(whole[0].line.text().contains(" name_0=+0(+16(%di)):x64[16] "));
    let register = [Fetch::new("name", "{a}", Type::StringWindow(16))];
    let features = Features { strings: true, ..Features::default() };
    assert_eq!(built(ProbeKind::Kprobe, &register, features).unwrap_err().kind(), Kind::Declaration);
}

#[test]
fn errors_name_the_probe_and_the_argument() {
    let error = built(ProbeKind::Kprobe, &[Fetch::new("dport", "+{sock.dport}({a})", Type::U16)], ALL).unwrap_err();
    assert_eq!(error.kind(), Kind::Unresolved);
    assert_eq!(error.to_string(), "probe probe on ip_local_out, argument dport: the layout has no sock.dport");
    let error =
        built(ProbeKind::Kprobe, &[Fetch::new("dport", "+{s.f}", Type::U16), Fetch::new("x", "{", Type::U8)], ALL);
    assert_eq!(error.unwrap_err().kind(), Kind::Declaration);
}

#[test]
fn names_that_the_kernel_would_not_take() {
    for name in ["", "1a", "a-b", "a b", "a\n", "é", "r#type", &"x".repeat(64)] {
        assert!(check_name("a probe", name, 63).is_err(), "{name:?}");
    }
    assert!(check_name("a probe", &"x".repeat(63), 63).is_ok());
    for function in ["", "a b", "a\np:x/y z"] {
        assert!(request(ProbeKind::Kprobe, &[], ALL).events(function).is_err(), "{function:?}");
    }
    assert!(request(ProbeKind::Kprobe, &[], ALL).events("tcp_v4_rcv.isra.0").is_ok());
    assert!(built(ProbeKind::Kprobe, &[Fetch::new("x".repeat(32), "{a}", Type::U8)], ALL).is_err());
}
