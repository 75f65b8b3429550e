//! HAProxy, which asks the agents who leads.

use std::fs;
use std::path::Path;

use crate::cluster::Member;
use crate::process::{Process, command, free_port, program};

/// Who leads to the primary, and who to the replicas.
pub struct Balancer {
    pub primary: u16,
    pub replicas: u16,
    _process: Process,
}

impl Balancer {
    /// Before these members, with the checks of their agents' APIs that a primary and a replica answer.
    pub fn start(members: &[Member], [leads, follows]: [&str; 2], folder: &Path) -> Self {
        let (primary, replicas) = (free_port(), free_port());
        let listen = |name: &str, port: u16, check: &str| {
            let servers: Vec<String> = members
                .iter()
                .map(|m| {
                    format!(
                        "  server {} 127.0.0.1:{} check port {}\n",
                        m.name, m.port, m.rest
                    )
                })
                .collect();
            format!(
                "listen {name}\n  bind 127.0.0.1:{port}\n  balance roundrobin\n  option httpchk OPTIONS {check}\n  \
                 http-check expect status 200\n  \
                 default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n{}",
                servers.concat()
            )
        };
        let text = format!(
            "global\n  maxconn 500\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30m\n  \
             timeout server 30m\n  timeout check 2s\n{}{}",
            listen("primary", primary, leads),
            listen("replicas", replicas, follows)
        );
        let file = folder.join("haproxy.cfg");
        fs::write(&file, text).unwrap();
        let mut command = command(&program("haproxy"), folder);
        command.arg("-db").arg("-f").arg(file);
        Self {
            primary,
            replicas,
            _process: Process::start(&mut command, &folder.join("haproxy.log")),
        }
    }
}
