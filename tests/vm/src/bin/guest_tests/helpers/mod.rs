//! What tests need to make things happen and to know what happened.
#![allow(dead_code, reason = "a toolbox: each test takes what it needs")]

pub(crate) mod bpf;
pub(crate) mod bulk;
pub(crate) mod cgroups;
pub(crate) mod community_id;
pub(crate) mod document;
pub(crate) mod ipsec;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod nft;
pub(crate) mod path_manager;
pub(crate) mod patience;
pub(crate) mod process;
pub(crate) mod requests;
pub(crate) mod socktrail;
#[allow(unsafe_code, reason = "calls that no library has")]
pub(crate) mod sys;
pub(crate) mod tc;
pub(crate) mod tracefs;
pub(crate) mod traffic;
pub(crate) mod web;
