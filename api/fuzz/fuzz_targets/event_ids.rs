//! Any text as a `Last-Event-ID`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| banyan_api::fuzzed::event_id(text));
