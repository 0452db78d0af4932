//! docs/h2o.md, step by step, with its configuration files as they are: their paths and ports are those of a production
//! machine, so they are used in a mount and network namespace.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use objmapper_harness::artefacts;
use objmapper_harness::cell::Cell;
use objmapper_harness::needs::Need;
use objmapper_harness::process::{Process, open_directory, wait_for};
use objmapper_harness::site;
use objmapper_harness::unit::exec_start;

const BOUND: Duration = Duration::from_secs(30);
const LARGE: usize = 3 * 1024 * 1024 + 17;
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu/varnish";
const VCL: &str = "/usr/share/varnish/vcl";

/// The machine of the guide, in `dir`.
struct Machine {
    dir: PathBuf,
    cell: Cell,
}

impl Machine {
    fn new(dir: &Path) -> Result<Self> {
        // What `make install` puts where, into copies of the directories.
        let copies = [(LIBRARIES, "lib"), (VCL, "vcl"), ("/etc", "etc")];
        for (from, name) in copies {
            let to = dir.join(name);
            if Path::new(from).is_dir() {
                run(Command::new("cp").arg("-a").arg(from).arg(&to))?;
            } else {
                std::fs::create_dir(&to)?;
            }
        }
        let repository = artefacts::workspace();
        artefacts::stage(&artefacts::engine()?, &dir.join("lib"))?;
        artefacts::stage(&artefacts::vmod()?, &dir.join("lib/vmods"))?;
        artefacts::stage(&repository.join("vcl/objmapper.vcl"), &dir.join("vcl"))?;
        for name in ["run/h2o", "run/objmapper", "log/h2o", "srv/www", "var", "etc/h2o", "etc/objmapper"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        site::write(&dir.join("srv/www"), "index.html", 1, 1000)?;
        site::write(&dir.join("srv/www"), "large", 2, LARGE)?;
        // The varnish user makes its working directories here.
        std::fs::set_permissions(dir.join("var"), std::fs::Permissions::from_mode(0o1777))?;
        let mut mounts = vec![
            (dir.join("lib"), LIBRARIES),
            (dir.join("etc"), "/etc"),
            (dir.join("run"), "/run"),
            (dir.join("log"), "/var/log"),
            (dir.join("srv"), "/srv"),
            (dir.join("var"), "/var/lib/varnish"),
        ];
        // objmapper.vcl is found in Varnish's directory, or in that of the configuration.
        if Path::new(VCL).is_dir() {
            mounts.push((dir.join("vcl"), VCL));
        } else {
            std::fs::copy(repository.join("vcl/objmapper.vcl"), dir.join("etc/varnish/objmapper.vcl"))?;
        }
        let cell = Cell::new(dir, &mounts)?;
        let machine = Self { dir: dir.to_owned(), cell };
        machine.install("h2o.conf", "h2o/h2o.conf")?;
        machine.install("objmapperd.toml", "objmapper/objmapperd.toml")?;
        Ok(machine)
    }

    /// Puts a file of the guide where it says, below /etc.
    fn install(&self, file: &str, to: &str) -> Result<()> {
        let to = self.dir.join("etc").join(to);
        std::fs::copy(guide(file), &to)?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// Starts a program inside, and waits until `ready`, a shell's condition, holds.
    fn start(&self, name: &str, program: &str, arguments: &[String], ready: &str) -> Result<Process> {
        let mut command = self.cell.command(program);
        command.args(arguments);
        let mut process = Process::start(name, &mut command, &self.dir.join(format!("{name}.log")))?;
        process.wait_ready(|| Ok(self.cell.output(&["sh", "-c", ready]).is_ok()))?;
        Ok(process)
    }

    fn start_h2o(&self) -> Result<Process> {
        let arguments = ["-c", "/etc/h2o/h2o.conf", "-m", "worker"].map(str::to_owned);
        self.start("h2o", "h2o", &arguments, "curl -sf -o /dev/null http://127.0.0.1:8080/")
    }

    /// Starts varnishd by the command of a unit of the guide, with one of its VCL files.
    fn start_varnishd(&self, name: &str, unit: &str, vcl: &str, port: u16) -> Result<Process> {
        self.install(vcl, "varnish/default.vcl")?;
        let words = exec_start(&std::fs::read_to_string(guide(unit))?);
        let (program, arguments) = words.split_first().with_context(|| format!("{unit}: no ExecStart"))?;
        self.start(name, program, arguments, &format!("curl -s -o /dev/null http://127.0.0.1:{port}/"))
    }

    /// The headers and the body of a response.
    fn curl(&self, arguments: &[&str]) -> Result<(String, Vec<u8>)> {
        let (headers, body) = (self.dir.join("headers"), self.dir.join("body"));
        let mut command = self.cell.command("curl");
        // What is shared is shared by Host and path, and that includes a port.
        run(command.args(["-sS", "-H", "Host: example.com", "-D"]).arg(&headers).arg("-o").arg(&body).args(arguments))?;
        Ok((std::fs::read_to_string(headers)?.to_lowercase(), std::fs::read(body)?))
    }

    /// GETs /large from a varnishd; its `X-L2`.
    fn large(&self, port: u16) -> Result<String> {
        let (headers, body) = self.curl(&[&format!("http://127.0.0.1:{port}/large")])?;
        ensure!(headers.starts_with("http/1.1 200"), "{headers}");
        ensure!(body == site::bytes(2, LARGE), "the body differs: {headers}");
        let status = headers.lines().find_map(|line| line.strip_prefix("x-l2: "));
        Ok(status.unwrap_or_default().to_owned())
    }

    fn counter(&self, name: &str, of: &[&str]) -> Result<u64> {
        let words = [&["varnishstat", "-1", "-f", name], of].concat();
        let text = self.cell.output(&words)?;
        let value = text.split_whitespace().nth(1).with_context(|| format!("no counter {name}"))?;
        Ok(value.parse()?)
    }

    /// Waits until the director of a varnishd has found its store.
    fn wait_up(&self, of: &[&str]) -> Result<()> {
        wait_for("the director to find the store", BOUND, || {
            let list = self.cell.output(&[&["varnishadm"], of, &["backend.list", "-p", "boot.om"]].concat())?;
            Ok(list.lines().any(|line| line.split_whitespace().eq(["State:", "up"])).then_some(()))
        })
    }

    /// How often H2O was asked for /large.
    fn origin_requests(&self) -> Result<usize> {
        let log = std::fs::read_to_string(self.dir.join("log/h2o/access.log"))?;
        Ok(log.lines().filter(|line| line.contains(" /large ")).count())
    }
}

/// Returns true if `test` is skipped because the machine allows no mount and network namespace.
fn lacks_a_cell(test: &str) -> Result<bool> {
    let test = format!("guide::{test}");
    Ok(Need::Mounts.skips(&test)? || Need::Network.skips(&test)?)
}

fn guide(file: &str) -> PathBuf {
    artefacts::workspace().join("docs/h2o").join(file)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn first_step_plain_varnish_and_h2o() -> Result<()> {
    if lacks_a_cell("first_step_plain_varnish_and_h2o")? {
        return Ok(());
    }
    let dir = open_directory()?;
    let machine = Machine::new(dir.path())?;
    let _h2o = machine.start_h2o()?;
    machine.install("plain.vcl", "varnish/default.vcl")?;
    let arguments = ["-F", "-a", ":6081", "-f", "/etc/varnish/default.vcl", "-s", "malloc,256m"].map(str::to_owned);
    let ready = "curl -s -o /dev/null http://127.0.0.1:6081/";
    let _varnishd = machine.start("varnishd", "/usr/sbin/varnishd", &arguments, ready)?;
    machine.large(6081)?;
    machine.large(6081)?;
    ensure!(machine.origin_requests()? == 1, "one miss");
    Ok(())
}

#[test]
fn second_step_the_storage_engine() -> Result<()> {
    if lacks_a_cell("second_step_the_storage_engine")? {
        return Ok(());
    }
    let dir = open_directory()?;
    let machine = Machine::new(dir.path())?;
    let _h2o = machine.start_h2o()?;
    let _varnishd = machine.start_varnishd("varnishd", "varnish-engine.conf", "plain.vcl", 6081)?;
    machine.large(6081)?;
    machine.large(6081)?;
    ensure!(machine.counter("OBJM.s0.g_bodies", &[])? == 1, "the body is not in objmapper");
    Ok(())
}

/// objmapperd by its unit's command; our build in place of the installed program.
fn start_objmapperd(machine: &Machine) -> Result<Process> {
    let unit = artefacts::workspace().join("objmapper-server/systemd/objmapperd.service");
    let words = exec_start(&std::fs::read_to_string(unit)?);
    let program = artefacts::objmapperd()?.display().to_string();
    machine.start("objmapperd", &program, &words[1..], "test -S /run/objmapper/objmapper.sock")
}

#[test]
fn third_step_two_varnishd_share_one_objmapperd() -> Result<()> {
    if lacks_a_cell("third_step_two_varnishd_share_one_objmapperd")? {
        return Ok(());
    }
    let dir = open_directory()?;
    let machine = Machine::new(dir.path())?;
    let _h2o = machine.start_h2o()?;
    let _objmapperd = start_objmapperd(&machine)?;
    let a = machine.start_varnishd("varnishd", "varnish-shared.conf", "shared.vcl", 6081)?;
    let _b = machine.start_varnishd("varnish-b", "varnish-b.service", "shared.vcl", 6082)?;
    let b = ["-n", "b"];
    machine.wait_up(&[])?;
    machine.wait_up(&b)?;

    ensure!(machine.large(6081)? == "miss", "nobody has it");
    // The other one is what the machine asked for to see that varnishd was up.
    wait_for("the response to be published", BOUND, || {
        Ok((machine.counter("OBJM.boot.om.c_published", &[])? >= 2).then_some(()))
    })?;
    ensure!(machine.large(6082)? == "hit", "the other one has published it");
    ensure!(machine.origin_requests()? == 1, "H2O was asked again");
    ensure!(machine.counter("OBJM.boot.om.c_adopted", &b)? == 1, "the body was copied");

    // What the guide shows: the director among the backends, a restart that is warm, PURGE, bans.
    let list = machine.cell.output(&["varnishadm", "backend.list", "-p"])?;
    ensure!(list.contains("boot.om"), "{list}");
    a.stop()?;
    let _a = machine.start_varnishd("varnishd", "varnish-shared.conf", "shared.vcl", 6081)?;
    machine.wait_up(&[])?;
    ensure!(machine.large(6081)? == "hit", "a restart empties nothing");
    ensure!(machine.origin_requests()? == 1, "H2O was asked again");

    for port in ["6081", "6082"] {
        let (headers, _) = machine.curl(&["-X", "PURGE", &format!("http://127.0.0.1:{port}/large")])?;
        ensure!(headers.starts_with("http/1.1 200"), "{headers}");
    }
    ensure!(machine.large(6082)? == "miss", "a purge holds");
    for of in [&[][..], &b[..]] {
        machine.cell.output(&[&["varnishadm"], of, &["ban", "obj.status", "!=", "0"]].concat())?;
    }
    ensure!(machine.large(6082)? == "miss", "a ban holds");
    ensure!(machine.origin_requests()? == 3, "three misses");
    Ok(())
}

#[test]
fn variant_with_proxy_protocol() -> Result<()> {
    if lacks_a_cell("variant_with_proxy_protocol")? {
        return Ok(());
    }
    let dir = open_directory()?;
    let machine = Machine::new(dir.path())?;
    let _h2o = machine.start_h2o()?;
    let _objmapperd = start_objmapperd(&machine)?;
    let _a = machine.start_varnishd("varnishd", "varnish-shared.conf", "shared-proxy.vcl", 6081)?;
    machine.large(6081)?;
    ensure!(machine.origin_requests()? == 1, "one miss");
    let log = std::fs::read_to_string(dir.path().join("log/h2o/access.log"))?;
    let line = log.lines().find(|line| line.contains(" /large ")).unwrap_or_default();
    ensure!(line.starts_with("127.0.0.1 "), "not the client's address: {line}");
    Ok(())
}
