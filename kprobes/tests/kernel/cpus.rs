//! CPUs that go offline and come back: CPU 1 is switched off and on.

use std::fs;

use socktrail_kprobes::{Record, RingOptions, Rings, Sample};

use crate::help::{OPEN, Open, group, install, on_cpu, open};

/// The tests open only this path. `follow_cpus` opens other files.
const FILTER: Option<&str> = Some("path == \"/x\"");

fn switch(online: bool) {
    fs::write("/sys/devices/system/cpu/cpu1/online", if online { "1" } else { "0" }).unwrap();
}

/// The CPUs of the samples in the rings.
fn cpus(rings: &mut Rings) -> Vec<u32> {
    let mut cpus = Vec::new();
    rings.drain(u64::MAX, &mut |record| {
        let Record::Sample { cpu, .. } = record else { panic!("{record:?}") };
        cpus.push(cpu);
    });
    cpus
}

#[test]
#[ignore = "needs a kernel with kprobes and two CPUs"]
fn rings_follow_cpus() {
    let group = group();
    let event = install(&group, "open", OPEN, Open::FETCHES);
    switch(true);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, FILTER).unwrap();
    let opens_on = |cpu| {
        on_cpu(cpu);
        open("/x");
    };
    assert_eq!(rings.follow_cpus().unwrap(), Default::default());
    opens_on(0);
    opens_on(1);
    assert_eq!(cpus(&mut rings), [0, 1]);

    // CPU 1 goes offline while its ring holds an unread sample.
    opens_on(1);
    on_cpu(0);
    switch(false);
    let changes = rings.follow_cpus().unwrap();
    assert_eq!((changes.came, changes.left), (vec![], vec![1]));
    opens_on(0);
    assert_eq!(cpus(&mut rings), [1, 0]);
    assert_eq!(rings.follow_cpus().unwrap(), Default::default());
    // A second event is attached on the CPUs that are online.
    let second = install(&group, "second", OPEN, Open::FETCHES);
    rings.attach(&second, FILTER).unwrap();
    opens_on(0);
    assert_eq!(cpus(&mut rings), [0, 0]);

    // CPU 1 comes back and gets both events.
    switch(true);
    let changes = rings.follow_cpus().unwrap();
    assert_eq!((changes.came, changes.left), (vec![1], vec![]));
    opens_on(1);
    assert_eq!(cpus(&mut rings), [1, 1]);
    rings.detach(&second);
    drop(second);

    // CPU 1 goes offline and comes back between two calls. Its events have stopped, which shows it.
    rings.follow_cpus().unwrap();
    on_cpu(0);
    switch(false);
    switch(true);
    opens_on(1);
    assert_eq!(cpus(&mut rings), [0; 0]);
    let changes = rings.follow_cpus().unwrap();
    assert_eq!((changes.came, changes.left), (vec![1], vec![]));
    opens_on(1);
    assert_eq!(cpus(&mut rings), [1]);

    // CPU 1 is offline when the rings are opened.
    on_cpu(0);
    switch(false);
    let mut rings = Rings::per_cpu(&RingOptions::default()).unwrap();
    rings.attach(&event, FILTER).unwrap();
    switch(true);
    assert_eq!(rings.follow_cpus().unwrap().came, [1]);
    opens_on(1);
    assert_eq!(cpus(&mut rings), [1]);
}
