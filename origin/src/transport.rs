//! HTTP as origins need it: connections whose addresses are checked, one exchange at a time that its reader drives, heads
//! and bodies that are what was asked for, and what requests are authorised with.
//!
//! Nothing here knows one service from another. Whatever is read by HTTP comes through it, so that proxies, certificates,
//! deadlines and the limits of [`SourcePolicy`](crate::SourcePolicy) hold for each kind of origin.

pub(crate) mod body;
pub(crate) mod calls;
pub(crate) mod connect;
pub(crate) mod contact;
pub(crate) mod encode;
pub(crate) mod environment;
pub(crate) mod exchange;
pub(crate) mod failure;
pub(crate) mod head;
mod low_water;
pub(crate) mod names;
pub(crate) mod patience;
pub(crate) mod proxy;
pub(crate) mod refusal;
pub(crate) mod renewed;
mod scheme;
pub(crate) mod seen;
pub(crate) mod service;
pub(crate) mod shown;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod time;
pub(crate) mod trust;
