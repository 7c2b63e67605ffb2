//! Any texts, cut at NUL, as server-sent events.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| banyan_api::fuzzed::events(&text.split('\0').collect::<Vec<_>>()));
