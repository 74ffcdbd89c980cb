//! How long a server polls for the next request.

use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::server::{Server, ended, output_of, pgmap, send, text, until};

/// Time that a process took of processors, in clock ticks.
fn ticks(child: &Child) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    // The name in front of these may contain blanks.
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
    fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
}

#[test]
fn a_server_polls_for_requests_as_long_as_it_is_told_and_no_longer() {
    let server = Server::start();
    let socket = server.path("other-socket");
    let serve = |busy_poll: &str| {
        let mut command = pgmap();
        command.args(["serve", "--size", "16M", "--busy-poll", busy_poll]);
        command.arg("--pool").arg(server.path("other")).arg("--socket").arg(&socket);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let other = ["--socket", socket.to_str().unwrap()];

    // 20 ticks are 200 ms, of which a server that sleeps needs a hundredth for a few requests.
    let mut polling = serve("1s");
    until("it polls", || {
        server.run(&[&["stat"][..], &other].concat());
        ticks(&polling) >= 20
    });
    let since = std::time::Instant::now();
    let mut last = ticks(&polling);
    until("it sleeps again", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let now = ticks(&polling);
        std::mem::replace(&mut last, now) == now
    });
    assert!(since.elapsed().as_millis() < 10_000, "{:?}", since.elapsed());
    send(&polling, Signal::TERM);
    ended(&mut polling);

    let refused = output_of(serve("61s"));
    let why = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{why}");
    assert!(why.contains("--busy-poll") && why.contains("60s at most"), "{why}");
    let wrong = output_of(serve("fast"));
    assert_eq!(wrong.status.code(), Some(2));
    let why = text(&wrong.stderr);
    assert!(why.contains("--busy-poll") && why.contains("invalid time `fast`"), "{why}");
}
