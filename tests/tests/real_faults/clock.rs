//! Clocks that jump. Needs faketime, which `./test --all` installs.

use std::{fs, path::PathBuf, time::Duration};

use banyan_tests::{
    Forest,
    clients::Clients,
    eventually,
    forest::{node, root},
};

use crate::assert_told_well;

fn library() -> PathBuf {
    let folders = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("there is no libfaketime: `./test --all` installs the package faketime"))
}

#[tokio::test]
async fn a_clock_that_jumps_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = folder.path().join("clock");
    fs::write(&clock, "+0").expect("there is room");
    let preload = format!("LD_PRELOAD={}", library().display());
    let file = format!("FAKETIME_TIMESTAMP_FILE={}", clock.display());
    // The time of day jumps; what measures durations does not, as on any Linux.
    let wrapper = ["env", &preload, &file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
    let mut forest = Forest::bare().await;
    forest.plant([root("root").wrapped(&wrapper)]).await;
    forest.plant([node("a", "root").wrapped(&wrapper), node("b", "a")]).await;
    let api = forest.api().await;
    forest.remember().await;
    let clients = Clients::start(api, 51, 4, Duration::from_millis(20)).await;
    for jump in ["+3600", "-86400", "+315360000", "+0"] {
        fs::write(&clock, jump).expect("there is room");
        let before = clients.asked();
        eventually("the clients go on", || async { (clients.asked() > before + 20).then_some(()) }).await;
    }
    assert_told_well(&clients.finish().await);
    forest.whole().await;
}
