//! Agents: what they offer, and how they fare.

use std::collections::BTreeMap;

use kiln_core::agent::{Load, Offer, Profile};

use super::{Read, Reader, narrow, wide};
use crate::v1;

/// A machine has fewer, or something is wrong with it.
const MAX_BACKENDS: usize = 64;
const MAX_LABELS: usize = 256;
const MAX_FEATURES: usize = 256;
const MAX_TEXT: usize = 1_000;

/// What a machine offers; `field` is the path of the message.
pub fn profile(field: &str, profile: v1::AgentProfile) -> Read<Profile> {
    let mut reader = Reader::at(field);
    reader.most("labels", &profile.labels, MAX_LABELS);
    if profile.backends.len() > MAX_BACKENDS {
        reader.fail("backends", format!("at most {MAX_BACKENDS}"));
        return reader.done(None);
    }
    let texts = [&profile.arch, &profile.os, &profile.version, &profile.host];
    let pairs = profile.labels.iter().flat_map(|(key, value)| [key, value]);
    if texts.into_iter().chain(pairs).any(|text| text.len() > MAX_TEXT) {
        reader.fail("", format!("texts and labels have at most {MAX_TEXT} bytes"));
    }
    let mut backends = BTreeMap::new();
    for (index, backend) in profile.backends.into_iter().enumerate() {
        let field = format!("backends[{index}]");
        let read = offer(&reader.name(&field), backend);
        if let Some((name, offer)) = reader.take(read)
            && backends.insert(name, offer).is_some()
        {
            reader.fail(&format!("{field}.backend"), "is named twice");
        }
    }
    let read = Profile {
        cpu_millis: reader.count("cpu_millis", profile.cpu_millis),
        memory_bytes: reader.unsigned("memory_bytes", profile.memory_bytes),
        arch: profile.arch,
        os: profile.os,
        version: profile.version,
        host: profile.host,
        labels: profile.labels.into_iter().collect(),
        backends,
    };
    reader.done(Some(read))
}

/// A backend and its name.
pub fn offer(field: &str, offer: v1::BackendOffer) -> Read<(String, Offer)> {
    let mut reader = Reader::at(field);
    if !kiln_core::spec::is_name(&offer.backend) {
        reader.fail("backend", "must be 1 to 100 characters of [A-Za-z0-9._-]");
    }
    if offer.features.len() > MAX_FEATURES || offer.operations.len() > MAX_FEATURES {
        reader.fail("", format!("at most {MAX_FEATURES} features and as many operations"));
    }
    reader.most("facts", &offer.facts, MAX_FEATURES);
    let slots = reader.count("slots", offer.slots);
    let read = Offer {
        slots: if offer.unavailable.is_empty() { slots } else { 0 },
        features: offer.features.into_iter().collect(),
        operations: offer.operations.into_iter().collect(),
        facts: offer.facts.into_iter().collect(),
        unavailable: Some(offer.unavailable).filter(|why| !why.is_empty()),
    };
    reader.done(Some((offer.backend, read)))
}

impl From<Profile> for v1::AgentProfile {
    fn from(profile: Profile) -> Self {
        Self {
            arch: profile.arch,
            os: profile.os,
            version: profile.version,
            host: profile.host,
            labels: profile.labels.into_iter().collect(),
            cpu_millis: narrow(profile.cpu_millis),
            memory_bytes: wide(profile.memory_bytes),
            backends: profile.backends.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<(String, Offer)> for v1::BackendOffer {
    fn from((backend, offer): (String, Offer)) -> Self {
        Self {
            backend,
            slots: narrow(offer.slots),
            features: offer.features.into_iter().collect(),
            operations: offer.operations.into_iter().collect(),
            facts: offer.facts.into_iter().collect(),
            unavailable: offer.unavailable.unwrap_or_default(),
        }
    }
}

/// How a machine fares, of its heartbeat.
pub fn load(field: &str, beat: &v1::Heartbeat) -> Read<Load> {
    let mut reader = Reader::at(field);
    let load = Load {
        load_millis: reader.count("load_millis", beat.load_millis),
        memory_available_bytes: reader
            .unsigned("memory_available_bytes", beat.memory_available_bytes),
        disk_available_bytes: reader.unsigned("disk_available_bytes", beat.disk_available_bytes),
    };
    reader.done(Some(load))
}

/// A heartbeat, with the profile where it changed.
pub fn heartbeat(load: Load, profile: Option<Profile>) -> v1::Heartbeat {
    v1::Heartbeat {
        load_millis: narrow(load.load_millis),
        memory_available_bytes: wide(load.memory_available_bytes),
        disk_available_bytes: wide(load.disk_available_bytes),
        profile: profile.map(Into::into),
    }
}
