//! The command line in a systemd unit.

/// The words of the last `ExecStart=` of a unit or drop-in; none if there is none. Quotes and specifiers are not
/// understood: ours have none.
pub fn exec_start(unit: &str) -> Vec<String> {
    let joined = unit.replace("\\\n", " ");
    let line = joined.lines().filter_map(|line| line.strip_prefix("ExecStart=")).next_back();
    line.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::exec_start;

    #[test]
    fn the_last_command_counts_and_lines_are_joined() {
        let unit =
            "[Service]\nExecStart=\nExecStart=/usr/sbin/varnishd \\\n          -F \\\n          -n b\nRestart=no\n";
        assert_eq!(exec_start(unit), ["/usr/sbin/varnishd", "-F", "-n", "b"]);
        assert!(exec_start("[Unit]\n").is_empty());
    }
}
