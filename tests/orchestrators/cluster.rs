//! A cluster under an orchestrator: for each of its members an agent that runs a server.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use diesel_replicated::Builder;
use rustix::process::{Pid, Signal, kill_process};

use crate::balancer::Balancer;
use crate::process::{Folder, Process, family, free_port, is_server, postgres};

/// How long a cluster may take to become what is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// One member: its server, its agent, and where they listen.
pub struct Member {
    pub name: String,
    pub port: u16,
    /// Where its agent listens, if it does.
    pub rest: u16,
    agent: Option<Process>,
}

impl Member {
    pub fn has_agent(&self) -> bool {
        self.agent.is_some()
    }
}

/// What is said of a member.
#[derive(Debug)]
pub struct Said {
    pub leads: bool,
    /// It leads or streams, and is to go on so.
    pub is_well: bool,
    pub state: String,
}

/// What is said of each member, by its name.
pub type View = BTreeMap<String, Said>;

/// Who promotes servers: what each does in its own way.
pub trait Orchestrator: Sized {
    /// Starts what the agents meet at, in a folder of the cluster.
    fn start(version: &str, folder: &Path) -> Self;

    /// What the agents meet at.
    fn store(&self) -> &Process;

    /// Starts the agent of a member. The first time, it makes the member's server: the first one or a copy of the leader.
    fn start_agent(&self, member: &Member, folder: &Path) -> Process;

    /// `None` if nobody tells.
    fn view(&self, members: &[Member]) -> Option<View>;

    /// Lets another member lead.
    fn switchover(&self, members: &[Member], leader: usize, folder: &Path);

    /// The pool of this crate, as the orchestrator's users would build it.
    fn pool(members: &[Member]) -> Builder;

    /// What leads to the leader and to the replicas by the agents' word, if they give it.
    fn balancer(members: &[Member], folder: &Path) -> Option<Balancer>;
}

pub struct Cluster<O> {
    pub members: Vec<Member>,
    orchestrator: O,
    /// The last that is dropped, as programs write to it until they end.
    pub folder: Folder,
}

impl<O> Drop for Cluster<O> {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.agent = None;
        }
        for place in 0..self.members.len() {
            self.signal_server(place, Signal::CONT);
            self.signal_server(place, Signal::KILL);
        }
    }
}

impl<O> Cluster<O> {
    fn postmaster(&self, place: usize) -> Option<Pid> {
        let file = self
            .folder
            .join(&self.members[place].name)
            .join("postmaster.pid");
        let text = fs::read_to_string(file).ok()?;
        Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
    }

    /// Sends a signal to the postmaster of a member; `STOP`, `CONT` and `KILL` to all of its processes.
    pub fn signal_server(&self, place: usize, signal: Signal) {
        let Some(postmaster) = self.postmaster(place) else {
            return;
        };
        let all = [Signal::STOP, Signal::CONT, Signal::KILL].contains(&signal);
        let processes = if all {
            family(postmaster, true)
        } else {
            vec![postmaster]
        };
        // Another process may have the number of one that has ended.
        for pid in processes.into_iter().filter(|pid| is_server(*pid)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Stops the postmaster, and none of the processes that serve those who are connected.
    pub fn freeze_postmaster(&self, place: usize) {
        let postmaster = self.postmaster(place).unwrap();
        kill_process(postmaster, Signal::STOP).unwrap();
    }

    /// Takes a member out: its agent, and then its server.
    pub fn remove_member(&mut self, place: usize) {
        self.kill_agent(place);
        self.signal_server(place, Signal::INT);
    }

    pub fn kill_agent(&mut self, place: usize) {
        self.members[place].agent = None;
    }

    pub fn signal_agent(&self, place: usize, signal: Signal) {
        self.members[place].agent.as_ref().unwrap().signal(signal);
    }

    /// The first value that a query of a member returns.
    pub fn sql(&self, place: usize, database: &str, query: &str) -> Option<String> {
        let port = self.members[place].port;
        sql(
            &format!("postgres://postgres@127.0.0.1:{port}/{database}"),
            query,
        )
    }
}

impl<O: Orchestrator> Cluster<O> {
    /// Starts three members, and waits until all stream.
    pub fn start(version: &str) -> Self {
        let folder = Folder::new(version);
        let mut cluster = Self {
            members: Vec::new(),
            orchestrator: O::start(version, &folder),
            folder,
        };
        for _ in 0..3 {
            cluster.add_member();
        }
        cluster.wait_whole(3);
        // The machine goes on whatever happens to servers, and its disk is not what is measured.
        for place in 0..3 {
            for order in ["ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"] {
                cluster.sql(place, "postgres", order).unwrap();
            }
        }
        cluster
    }

    /// Adds another member. It makes itself a copy of the leader.
    pub fn add_member(&mut self) {
        self.members.push(Member {
            name: format!("n{}", self.members.len() + 1),
            port: free_port(),
            rest: free_port(),
            agent: None,
        });
        self.start_agent(self.members.len() - 1);
    }

    pub fn start_agent(&mut self, place: usize) {
        let member = &self.members[place];
        let agent = self.orchestrator.start_agent(member, &self.folder);
        self.members[place].agent = Some(agent);
    }

    pub fn signal_store(&self, signal: Signal) {
        self.orchestrator.store().signal(signal);
    }

    pub fn switchover(&self) {
        let leader = self.leader();
        self.orchestrator
            .switchover(&self.members, leader, &self.folder);
    }

    /// The place of the leader.
    pub fn leader(&self) -> usize {
        self.wait("a leader", |view| self.place_of_leader(view))
    }

    fn place_of_leader(&self, view: &View) -> Option<usize> {
        let name = view.iter().find(|(_, said)| said.leads)?.0;
        self.members.iter().position(|member| member.name == *name)
    }

    /// Waits for another leader than this one.
    pub fn wait_other_leader(&self, before: usize) -> usize {
        self.wait("another leader", |view| {
            self.place_of_leader(view)
                .filter(|leader| *leader != before)
        })
    }

    /// Waits until there are so many members, one of which leads and the others of which stream from it.
    pub fn wait_whole(&self, members: usize) {
        self.wait("all to be well", |view| {
            let leaders = view.values().filter(|said| said.leads).count();
            let well = view.len() == members && view.values().all(|said| said.is_well);
            (well && leaders == 1 && self.standbys(view) == members - 1).then_some(())
        });
    }

    /// Waits until a member is in this state.
    pub fn wait_state(&self, place: usize, state: &str) {
        let name = &self.members[place].name;
        self.wait(state, |view| {
            view.get(name).filter(|said| said.state == state).map(drop)
        });
    }

    /// Waits until what is said of the members shows this.
    fn wait<T>(&self, what: &str, shown: impl Fn(&View) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.orchestrator.view(&self.members).unwrap_or_default();
            if let Some(found) = shown(&view) {
                return found;
            }
            let folder = self.folder.display();
            assert!(
                Instant::now() < deadline,
                "no sign of {what}: {view:?}; {folder}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How many standbys the leader sends to.
    fn standbys(&self, view: &View) -> usize {
        let query = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
        self.place_of_leader(view)
            .and_then(|leader| self.sql(leader, "postgres", query))
            .and_then(|count| count.parse().ok())
            .unwrap_or(0)
    }
}

/// What a query returns. `None` if it fails.
pub fn sql(url: &str, query: &str) -> Option<String> {
    let psql = Path::new(&postgres()).join("psql");
    let output = Command::new(psql)
        .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query, url])
        .env("PGCONNECT_TIMEOUT", "2")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| text.trim().to_owned())
}
