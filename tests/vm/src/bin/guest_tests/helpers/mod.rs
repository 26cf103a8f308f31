//! Helpers that start programs, change the network, and read documents.
#![allow(dead_code, reason = "not every program of the crate uses every helper")]

pub(crate) mod bpf;
pub(crate) mod bulk;
pub(crate) mod cgroups;
pub(crate) mod community_id;
pub(crate) mod document;
pub(crate) mod ipsec;
pub(crate) mod layout;
pub(crate) mod mptcp_endpoints;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod nft;
pub(crate) mod process;
pub(crate) mod requests;
pub(crate) mod socktrail;
#[allow(unsafe_code, reason = "system calls that nix has no safe wrapper for")]
pub(crate) mod sys;
pub(crate) mod tc;
pub(crate) mod tracefs;
pub(crate) mod traffic;
pub(crate) mod wait;
pub(crate) mod web;
