//! Qdiscs and filters at the two ends of an interface, as netlink messages.
//!
//! A `clsact` or `ingress` qdisc is where filters hang; its handle is `ffff:`, and the two ends are `ffff:fff2` (what the interface
//! receives) and `ffff:fff3` (what goes out).

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{DefaultNla, Emitable as _, NlaBuffer, NlasIterator, Parseable as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionGeneric, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage,
    TcMirror, TcMirrorActionType, TcOption,
};

use crate::error::NetError;
use crate::filter::{Instruction, SHOT, always};
use crate::netlink::{Netlink, Request};

const HANDLE: TcHandle = TcHandle {
    major: u16::MAX,
    minor: 0,
};

/// Of a number's filters. One without a handle gets the next that is free, and goes before the others.
const FIRST: TcHandle = TcHandle { major: 0, minor: 1 };

/// Which end of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Ingress,
    Egress,
}

impl End {
    fn parent(self) -> TcHandle {
        TcHandle {
            major: u16::MAX,
            minor: match self {
                End::Ingress => TcHandle::MIN_INGRESS,
                End::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

/// What becomes of a frame that a filter's program accepts; one that it does not accept goes on to the next filter.
pub(crate) enum Then {
    /// It goes out of another interface, and is seen no more here.
    Redirect { to: u32, cookie: [u8; 16] },
    /// It goes on to the stack, and no other filter is asked.
    Pass,
}

// linux/pkt_cls.h: attributes of the `bpf` classifier that the library has no names for.
const TCA_BPF_ACT: u16 = 1;
const TCA_BPF_OPS_LEN: u16 = 4;
const TCA_BPF_OPS: u16 = 5;
/// `ETH_P_ALL`, as it stands in a frame.
const EVERY: u32 = (libc::ETH_P_ALL as u16).to_be() as u32;

pub(crate) enum Kind {
    /// One end.
    Ingress,
    /// Both.
    Clsact,
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Ingress => "ingress",
            Kind::Clsact => "clsact",
        }
    }
}

/// Sees to it that there is one.
pub(crate) fn need_qdisc(link: u32, kind: &Kind, of: &str) -> Request {
    let message = message(link, HANDLE, TcHandle::INGRESS, 0, kind.name(), Vec::new());
    Request::ensure(
        RouteNetlinkMessage::NewQueueDiscipline(message),
        format!("{of}: adding a {} qdisc", kind.name()),
    )
}

fn remove_qdisc(link: u32, kind: &str, of: &str) -> Request {
    let message = message(link, HANDLE, TcHandle::INGRESS, 0, kind, Vec::new());
    Request::change(
        RouteNetlinkMessage::DelQueueDiscipline(message),
        format!("{of}: removing the {kind} qdisc"),
    )
}

/// A filter that asks `program`, the `number`th of its end. Of two at once with the same number, the kernel refuses the second (EEXIST).
pub(crate) fn add_filter(
    link: u32,
    end: End,
    number: u16,
    program: &[Instruction],
    then: &Then,
    of: &str,
) -> Request {
    let mut options = Vec::new();
    if let Then::Redirect { to, cookie } = then {
        options.push(other(TCA_BPF_ACT, redirect(*to, *cookie)));
    }
    options.extend(operations(program));
    filter(link, end, number, options, of)
}

/// A last filter, that drops what no other has taken.
pub(crate) fn drop_the_rest(link: u32, end: End, number: u16, of: &str) -> Request {
    let mut options = operations(&always(SHOT)).to_vec();
    options.push(decides_itself());
    filter(link, end, number, options, of)
}

/// A filter whose program is in the kernel already, and decides itself.
pub(crate) fn add_loaded(
    link: u32,
    end: End,
    number: u16,
    program: BorrowedFd<'_>,
    name: &str,
    of: &str,
) -> Request {
    let options = vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(name.to_owned())),
        decides_itself(),
    ];
    filter(link, end, number, options, of)
}

fn decides_itself() -> TcOption {
    TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction))
}

fn filter(link: u32, end: End, number: u16, options: Vec<TcOption>, of: &str) -> Request {
    let info = u32::from(number) << 16 | EVERY;
    let attributes = vec![TcAttribute::Options(options)];
    let message = message(link, FIRST, end.parent(), info, "bpf", attributes);
    Request::create(
        RouteNetlinkMessage::NewTrafficFilter(message),
        format!("{of}: adding a bpf filter"),
    )
}

fn message(
    link: u32,
    handle: TcHandle,
    parent: TcHandle,
    info: u32,
    kind: &str,
    mut attributes: Vec<TcAttribute>,
) -> TcMessage {
    let header = TcHeader {
        index: link as i32,
        handle,
        parent,
        info,
        ..TcHeader::default()
    };
    attributes.insert(0, TcAttribute::Kind(kind.to_owned()));
    TcMessage::from_parts(header, attributes)
}

fn operations(program: &[Instruction]) -> [TcOption; 2] {
    let count = program.len() as u16;
    let bytes = program.iter().flat_map(|i| i.bytes()).collect();
    [
        other(TCA_BPF_OPS_LEN, count.to_ne_bytes().to_vec()),
        other(TCA_BPF_OPS, bytes),
    ]
}

fn other(kind: u16, bytes: Vec<u8>) -> TcOption {
    TcOption::Bpf(TcFilterBpfOption::Other(DefaultNla::new(kind, bytes)))
}

fn redirect(to: u32, cookie: [u8; 16]) -> Vec<u8> {
    let mut generic = TcActionGeneric::default();
    generic.action = TcActionType::Stolen;
    let mut mirror = TcMirror::default();
    mirror.generic = generic;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind("mirred".to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
        TcActionAttribute::Cookie(cookie.to_vec()),
    ];
    let actions = [action];
    let mut bytes = vec![0; actions.as_slice().buffer_len()];
    actions.as_slice().emit(&mut bytes);
    bytes
}

/// The qdisc of an interface's ends, if it has one: what it is called.
pub(crate) fn qdisc(netlink: &mut Netlink, link: u32) -> Result<Option<String>, NetError> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(link as i32));
    let answers = netlink.dump(question, "listing qdiscs")?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        // The kernel lists those of every interface.
        RouteNetlinkMessage::NewQueueDiscipline(qdisc)
            if qdisc.header.index == link as i32 && qdisc.header.parent == TcHandle::INGRESS =>
        {
            kind(&qdisc).map(str::to_owned)
        }
        _ => None,
    }))
}

fn kind(message: &TcMessage) -> Option<&str> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.as_str()),
            _ => None,
        })
}

/// Filters of an interface: what each is, and the cookies of its actions.
pub(crate) struct Filter {
    message: TcMessage,
    pub(crate) cookies: Vec<Vec<u8>>,
}

pub(crate) fn filters(netlink: &mut Netlink, link: u32, end: End) -> Result<Vec<Filter>, NetError> {
    let mut question = TcMessage::with_index(link as i32);
    question.header.parent = end.parent();
    let question = RouteNetlinkMessage::GetTrafficFilter(question);
    let answers = match netlink.dump(question, "listing filters") {
        // Without a qdisc there is no filter.
        Err(NetError::Kernel { source, .. })
            if matches!(source.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) =>
        {
            return Ok(Vec::new());
        }
        answers => answers?,
    };
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            // Without a handle it is a class of filters, whose members follow.
            RouteNetlinkMessage::NewTrafficFilter(message)
                if message.header.handle != TcHandle::UNSPEC =>
            {
                let cookies = cookies(&message);
                Some(Filter { message, cookies })
            }
            _ => None,
        })
        .collect())
}

fn cookies(message: &TcMessage) -> Vec<Vec<u8>> {
    let options = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    let actions = options.flatten().filter_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::Other(nla)) => Some(nla),
        _ => None,
    });
    let mut cookies = Vec::new();
    for nla in actions {
        let mut bytes = vec![0; nla.buffer_len()];
        nla.emit(&mut bytes);
        let Ok(nla) = NlaBuffer::new_checked(&bytes) else {
            continue;
        };
        if nla.kind() != TCA_BPF_ACT {
            continue;
        }
        for action in NlasIterator::new(nla.value()).flatten() {
            let Ok(action) = TcAction::parse(&action) else {
                continue;
            };
            cookies.extend(action.attributes.into_iter().filter_map(|a| match a {
                TcActionAttribute::Cookie(cookie) => Some(cookie),
                _ => None,
            }));
        }
    }
    cookies
}

/// Removes the redirects with this cookie from an interface's ingress, and the qdisc below them if `ours` and nobody else uses it.
pub(crate) fn remove_redirects(
    netlink: &mut Netlink,
    link: u32,
    cookie: [u8; 16],
    ours: bool,
    of: &str,
) -> Result<(), NetError> {
    let found = filters(netlink, link, End::Ingress)?;
    let (mine, others): (Vec<_>, Vec<_>) = found
        .into_iter()
        .partition(|filter| filter.cookies.iter().any(|c| c[..] == cookie));
    let requests = mine.into_iter().map(|filter| {
        let header = filter.message.header;
        let message = message(
            link,
            header.handle,
            header.parent,
            header.info,
            "bpf",
            Vec::new(),
        );
        Request::change(
            RouteNetlinkMessage::DelTrafficFilter(message),
            format!("{of}: removing a filter"),
        )
    });
    // All of them, also after one that fails.
    let removed = requests.map(|request| netlink.one(request));
    removed.fold(Ok(()), Result::and)?;
    let ingress = Kind::Ingress.name();
    if ours && others.is_empty() && qdisc(netlink, link)?.as_deref() == Some(ingress) {
        netlink.one(remove_qdisc(link, ingress, of))?;
    }
    Ok(())
}
