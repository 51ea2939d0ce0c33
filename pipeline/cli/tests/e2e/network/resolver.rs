//! A name server that knows one answer.

use std::net::UdpSocket;

use fcpipe_net::Namespace;

/// Answers every question for an address with 10.50.0.2 or fd00:50::2, on a thread that ends with the test program.
pub(crate) fn start(namespace: &str) {
    let namespace = Namespace::open(format!("/run/netns/{namespace}").as_ref()).unwrap();
    let socket = namespace.inside(|| Ok(UdpSocket::bind("[::]:53").unwrap()));
    let socket = socket.unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((read, from)) = socket.recv_from(&mut buffer) {
            let answer = answer(&buffer[..read]);
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// The question once more, and the answer to it (RFC 1035, 4.1).
fn answer(question: &[u8]) -> Vec<u8> {
    let kind = [question[question.len() - 4], question[question.len() - 3]];
    let data: &[u8] = match kind {
        [0, 1] => &[10, 50, 0, 2],
        _ => &[0xfd, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
    };
    let mut answer = question.to_vec();
    // A response, recursion available, no error; one answer, nothing else.
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    // The name as in the question, the kind, the class, a minute.
    answer.extend_from_slice(&[0xc0, 12, kind[0], kind[1], 0, 1, 0, 0, 0, 60]);
    answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
    answer.extend_from_slice(data);
    answer
}
