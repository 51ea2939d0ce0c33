//! What a spec asks of its machine beyond CPUs and memory, in the VMM's words.

use fcpipe_spec::{CpuTemplate, HugePages, LaunchSpec};
use fcpipe_vmm::{Balloon, RateLimit, Tuning};

pub(crate) fn of(spec: &LaunchSpec) -> Tuning {
    let machine = &spec.machine;
    Tuning {
        cpu_template: machine.cpu_template.map(|template| match template {
            CpuTemplate::C3 => fcpipe_vmm::CpuTemplate::C3,
            CpuTemplate::T2 => fcpipe_vmm::CpuTemplate::T2,
            CpuTemplate::T2S => fcpipe_vmm::CpuTemplate::T2S,
            CpuTemplate::T2CL => fcpipe_vmm::CpuTemplate::T2CL,
            CpuTemplate::T2A => fcpipe_vmm::CpuTemplate::T2A,
            CpuTemplate::V1N1 => fcpipe_vmm::CpuTemplate::V1N1,
        }),
        smt: machine.smt,
        huge_pages: machine.huge_pages == HugePages::TwoMiB,
        balloon: machine.balloon.map(|balloon| Balloon {
            // Less than the guest's memory, so it fits.
            mib: u32::try_from(balloon.size >> 20).unwrap_or(u32::MAX),
            deflate_on_oom: balloon.deflate_on_oom,
        }),
        drive_limit: limit(spec.disk.rate_limit),
        net_limit: limit(spec.network.rate_limit),
    }
}

fn limit(limit: fcpipe_spec::RateLimit) -> RateLimit {
    RateLimit {
        bandwidth: limit.bandwidth,
        ops: limit.ops,
    }
}
