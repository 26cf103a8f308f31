//! Values for the unit tests of these modules.

use super::boots::{Boot, TestSet};
use crate::matrix::{Arch, Kernel};
use crate::options::TestOptions;

pub(super) fn options(kernels: &[Kernel], arch: Option<Arch>) -> TestOptions {
    TestOptions {
        kernels: kernels.to_vec(),
        arch,
        full: false,
        long: false,
        jobs: None,
        seed: None,
        as_of: None,
        without: Vec::new(),
        accounting: None,
        backend: None,
        timeout: None,
        filter: None,
    }
}

pub(super) fn boot(kernel: Kernel, arch: Arch, tests: TestSet) -> Boot {
    Boot { kernel, arch, tests, as_of: None }
}
