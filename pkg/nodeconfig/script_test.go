// SPDX-License-Identifier: Apache-2.0

package nodeconfig

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestShellcheck(t *testing.T) {
	t.Parallel()
	shellcheck, err := exec.LookPath("shellcheck")
	if err != nil {
		t.Fatal("shellcheck is not installed; `make check` and `apt-get install shellcheck` do that")
	}
	out, err := exec.CommandContext(t.Context(), shellcheck, "--enable=quote-safe-variables,check-unassigned-uppercase", "configure-containerd-registries.sh").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestScriptUsage(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "bash", "configure-containerd-registries.sh", "probe").CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), "usage: ") {
		t.Errorf("an unknown command ended with %v and %q, want exit code 2 and the usage", err, out)
	}
}

// The script carries names that it cannot take from Go.
func TestScriptAgreesWithTheUnit(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"marker='" + Marker + "'", "/multi-user.target.wants/" + UnitName, "state=$root" + filepath.Dir(HostsDirectory) + "\n"} {
		if !strings.Contains(script, name) {
			t.Errorf("the script has no %q", name)
		}
	}
	for _, line := range []string{"ExecStart=" + ScriptPath + " run\n", "ExecStopPost=" + ScriptPath + " withdraw\n", "WantedBy=multi-user.target\n", "Restart=always\n"} {
		if !strings.Contains(unit, line) {
			t.Errorf("the unit has no line %q", line)
		}
	}
}

func TestCacheIsUsedWhileItAnswers(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		behaviour int32
		reason    string
	}{
		"503":        {unavailable, "GET /v2/ answered 503"},
		"redirect":   {redirects, "GET /v2/ answered 302"},
		"no answer":  {hangs, "timed out"},
		"stall":      {stalls, "timed out"},
		"no process": {-1, "Failed to connect"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, n := newCache(t, "docker.io"), newNode(t)
			n.configure(t, c.RegistryCacheStatus)
			n.start(t)
			file := n.hostsTOML("docker.io")

			n.awaitContent(t, file, c.through())
			n.awaitJournal(t, "docker.io: pulled through the cache "+c.Endpoint+", GET /v2/ answered 200\n")

			address := c.listener.Addr().String()
			if tc.behaviour < 0 {
				c.close(t)
			} else {
				c.behaviour.Store(tc.behaviour)
			}
			n.awaitContent(t, file, c.direct())
			n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+c.Endpoint+" is not used: ")
			n.awaitJournal(t, tc.reason)

			if tc.behaviour < 0 {
				c.listen(t, address)
			}
			c.behaviour.Store(answers)
			n.awaitContent(t, file, c.through())
			n.awaitRounds(t, c)
			if got := n.journal.lines(); len(got) != 3 {
				t.Errorf("three changes made %d lines in the journal:\n%s", len(got), n.journal.String())
			}
		})
	}
}

// The rounds begin two seconds apart and a probe has one second, so a pull meets a cache that refuses connections for three
// seconds at most.
func TestWithdrawnWithinThreeSeconds(t *testing.T) {
	t.Parallel()
	testWithdrawal(t, 3*time.Second, func(c *cache) { c.close(t) })
}

// A cache that accepts connections has another round to answer in. With the rounds two seconds after one another it would
// be seven seconds as soon as another cache hangs, too.
func TestSilentCacheIsWithdrawnWithinFiveSeconds(t *testing.T) {
	t.Parallel()
	testWithdrawal(t, 5*time.Second, func(c *cache) { c.behaviour.Store(hangs) })
}

// testWithdrawal breaks one cache after the other just after a probe, the worst moment.
func testWithdrawal(t *testing.T, design time.Duration, disable func(*cache)) {
	// For a busy machine, and less than what waiting for another probe would add.
	limit := design + 2*time.Second
	first, second := newCache(t, "docker.io"), newCache(t, "quay.io")
	n := newNode(t, "REGISTRY_CACHE_INTERVAL=")
	n.configure(t, first.RegistryCacheStatus, second.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), first.through())
	n.awaitContent(t, n.hostsTOML("quay.io"), second.through())

	for _, c := range []*cache{first, second} {
		before := c.probes.Load()
		eventually(t, func() error {
			if c.probes.Load() == before {
				return errors.New("no probe came")
			}
			return nil
		})
		began := time.Now()
		disable(c)
		n.awaitContent(t, n.hostsTOML(c.Upstream), c.direct())
		took := time.Since(began)
		t.Logf("%s was withdrawn after %s", c.Upstream, took)
		if took > limit {
			t.Errorf("the entry of %s was withdrawn after %s, want at most %s", c.Upstream, took, limit)
		}
	}
}

// While many nodes pull, a cache can be too slow for one probe.
func TestOneLateAnswerIsTolerated(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t, "ca")
	c, n := newTLSCacheAt(t, "docker.io", "127.0.0.1:0", ca), newNode(t)
	c.Engine = "distribution" // the unit verifies it in each round
	n.bundle = ca.pem
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.watchRoots(t, c.Upstream)
	for range 3 {
		before := c.probes.Load()
		c.held.Store(1)
		eventually(t, func() error {
			if got := c.probes.Load() - before; got < 3 {
				return fmt.Errorf("%d probes, want 3", got)
			}
			return nil
		})
	}
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	if got := n.journal.lines(); len(got) != 1 {
		t.Errorf("nothing changed, and the journal has %d lines:\n%s", len(got), n.journal.String())
	}
}

// On an overloaded node all probes are late.
func TestOverloadedNodeWaitsLonger(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.write(t, "proc/loadavg", "99999.00 10.00 5.00 99999/100000 12345\n")
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	before := c.probes.Load()
	c.behaviour.Store(late)
	eventually(t, func() error {
		if got := c.probes.Load() - before; got < 8 {
			return fmt.Errorf("%d probes, want 8", got)
		}
		return nil
	})
	if got := n.journal.lines(); len(got) != 1 {
		t.Errorf("nothing changed, and the journal has %d lines:\n%s", len(got), n.journal.String())
	}
	n.write(t, "proc/loadavg", "99999.00 10.00 5.00 2/100000 12345\n")
	n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
}

func TestNeverHealthyLeavesNoFile(t *testing.T) {
	t.Parallel()
	never, other, n := newCache(t, "docker.io"), newCache(t, "quay.io"), newNode(t)
	never.behaviour.Store(unavailable)
	n.configure(t, never.RegistryCacheStatus, other.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("quay.io"), other.through())
	n.awaitRounds(t, never)
	mustNotExist(t, n.path("etc/containerd/certs.d/docker.io"))
	n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+never.Endpoint+" is not used: GET /v2/ answered 503\n")
}

func TestForeignConfigurationIsNotTouched(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"hosts.toml", "ca.crt", "client.key"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, n := newCache(t, "docker.io"), newNode(t)
			n.configure(t, c.RegistryCacheStatus)
			const content = "server = \"https://mirror.example.com\"\n"
			n.write(t, "etc/containerd/certs.d/docker.io/"+name, content)
			n.start(t)
			n.awaitJournal(t, "docker.io: not touched, /etc/containerd/certs.d/docker.io has a "+name+" of somebody else\n")
			n.awaitRounds(t, c)
			c.behaviour.Store(unavailable)
			n.awaitRounds(t, c)
			n.stop(t)

			n.awaitContent(t, n.path("etc/containerd/certs.d/docker.io", name), content)
			entries, err := os.ReadDir(n.path("etc/containerd/certs.d/docker.io"))
			if err != nil || len(entries) != 1 {
				t.Errorf("the directory has %v (%v), want %s alone", entries, err, name)
			}
			if got := n.journal.lines(); len(got) != 1 {
				t.Errorf("want one line in the journal, got:\n%s", n.journal.String())
			}
		})
	}
}

// Somebody may take an upstream over while the unit runs.
func TestForeignConfigurationAppears(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.write(t, "etc/containerd/certs.d/docker.io/ca.crt", "a certificate")
	n.awaitContent(t, n.hostsTOML("docker.io"), "")
	n.awaitContent(t, n.path("etc/containerd/certs.d/docker.io/ca.crt"), "a certificate")
}

func TestChangedFileIsRestored(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	if err := os.Remove(n.hostsTOML("docker.io")); err != nil {
		t.Fatal(err)
	}
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.awaitJournal(t, "docker.io: hosts.toml had been changed, restored\n")
}

func TestRemovedUpstream(t *testing.T) {
	t.Parallel()
	gone, kept, n := newCache(t, "registry.example.com:8443"), newCache(t, "docker.io"), newNode(t)
	n.configure(t, gone.RegistryCacheStatus, kept.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("registry.example.com:8443"), gone.through())
	n.awaitContent(t, n.hostsTOML("docker.io"), kept.through())

	n.configure(t, kept.RegistryCacheStatus)
	n.awaitContent(t, n.hostsTOML("registry.example.com:8443"), "")
	eventually(t, func() error {
		for _, directory := range []string{"etc/containerd/certs.d", HostsDirectory} {
			if _, err := os.Stat(n.path(directory, "registry.example.com:8443")); !errors.Is(err, os.ErrNotExist) {
				return errors.New(directory + " still has a directory for the upstream")
			}
		}
		return nil
	})
	n.awaitJournal(t, "registry.example.com:8443: not configured any more, hosts.toml removed\n")
	n.awaitContent(t, n.hostsTOML("docker.io"), kept.through())
}

// The unit was killed, then its upstream was removed from the Shoot.
func TestLeftoversAreRemoved(t *testing.T) {
	t.Parallel()
	gone, kept, n := newCache(t, "ghcr.io"), newCache(t, "docker.io"), newNode(t)
	n.configure(t, gone.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("ghcr.io"), gone.through())
	n.kill(t)
	n.configure(t, kept.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), kept.through())
	n.awaitContent(t, n.hostsTOML("ghcr.io"), "")
}

// A node that lost power has the entry of a cache that nobody can reach while the node boots.
func TestEntryOfAKilledUnitIsWithdrawn(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.kill(t)
	c.behaviour.Store(unavailable)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
}

func TestStopWithdrawsEverything(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*node, *testing.T){
		"stop":  (*node).stop,
		"crash": func(n *node, t *testing.T) { n.kill(t); n.stopPost(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			healthy, failing, n := newCache(t, "docker.io"), newCache(t, "quay.io"), newNode(t)
			n.configure(t, healthy.RegistryCacheStatus, failing.RegistryCacheStatus)
			n.start(t)
			n.awaitContent(t, n.hostsTOML("quay.io"), failing.through())
			failing.behaviour.Store(unavailable)
			n.awaitContent(t, n.hostsTOML("quay.io"), failing.direct())
			n.awaitContent(t, n.hostsTOML("docker.io"), healthy.through())
			for _, upstream := range []string{"docker.io", "ghcr.io"} {
				n.write(t, "etc/containerd/certs.d/"+upstream+"/.hosts.toml.registry-cache", "half of a fi")
			}

			end(n, t)
			left, err := os.ReadDir(n.path("etc/containerd/certs.d"))
			if err != nil || len(left) != 0 {
				t.Errorf("certs.d has %v (%v), want nothing", left, err)
			}
			n.awaitContent(t, n.path(HostsDirectory, "docker.io/hosts.toml"), healthy.through())

			n.start(t)
			n.awaitContent(t, n.hostsTOML("docker.io"), healthy.through())
			mustNotExist(t, n.path("run/registry-cache-clean"))
		})
	}
}

func TestStopWhileACacheHangs(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	c.behaviour.Store(hangs)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitJournal(t, "is not used")
	began := time.Now()
	n.stop(t)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("stopping took %s; systemd kills after 10 s", took)
	}
}

// gardener-node-agent disables, stops and deletes the unit, and deletes the files some time after that.
func TestRemovalLeavesNoTrace(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	systemdRun := "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n\"$@\" >/dev/null 2>&1 &\n"
	if err := os.WriteFile(filepath.Join(bin, "systemd-run"), []byte(systemdRun), 0o755); err != nil {
		t.Fatal(err)
	}
	c, n := newCache(t, "docker.io"), newNode(t, "PATH="+bin+":"+os.Getenv("PATH"))
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())

	if err := os.Remove(n.path(enabledLink)); err != nil {
		t.Fatal(err)
	}
	n.stop(t)
	// Disabling alone, which any administrator may do, must not lose what gardener-node-agent would not write again.
	n.awaitContent(t, n.path(HostsDirectory, "docker.io/hosts.toml"), c.through())

	n.configure(t)
	if err := os.Remove(n.path(ScriptPath)); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		var left []string
		err := filepath.WalkDir(n.root, func(path string, entry os.DirEntry, err error) error {
			if err == nil && (!entry.IsDir() || strings.Contains(path, "registry-cache") || strings.Contains(path, "docker.io")) {
				left = append(left, path)
			}
			return nil // it may have gone meanwhile
		})
		if err != nil || len(left) > 0 {
			return errors.New("left on the node: " + strings.Join(left, " "))
		}
		return nil
	})
}

func TestRemovalWithoutSystemdRun(t *testing.T) {
	t.Parallel()
	c := newCache(t, "docker.io")
	n := newNode(t, "PATH="+programs(t, "bash", "sleep", "curl", "mkdir", "sync", "mv", "rm", "rmdir", "cp"))
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	if err := os.Remove(n.path(enabledLink)); err != nil {
		t.Fatal(err)
	}
	n.stop(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), "")
	n.awaitJournal(t, "the directories in /var/lib/registry-cache stay when this unit is removed\n")
}

// containerd reads the file while it is replaced.
func TestFileIsNeverSeenInParts(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	c.behaviour.Store(alternates)
	seen := map[string]int{}
	deadline := time.Now().Add(patience)
	for last, changes := "", 0; changes < 20; {
		content, err := os.ReadFile(n.hostsTOML("docker.io"))
		if err != nil {
			t.Fatalf("the file was away while it was replaced: %v", err)
		}
		if got := string(content); got != last {
			last = got
			seen[got]++
			changes++
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d changes in %s, want 20", changes, patience)
		}
	}
	if len(seen) != 2 || seen[c.through()] == 0 || seen[c.direct()] == 0 {
		t.Errorf("read %d different contents, want the two whole ones: %v", len(seen), seen)
	}
}

// A directory for the upstream hides _default from containerd, so that "nothing configured" means no directory.
func TestDefaultIsNotHidden(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.write(t, "etc/containerd/certs.d/_default/hosts.toml", "server = \"https://mirror.example.com\"\n")
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	c.behaviour.Store(unavailable)
	eventually(t, func() error {
		if _, err := os.Stat(filepath.Dir(n.hostsTOML("docker.io"))); !errors.Is(err, os.ErrNotExist) {
			return errors.New("the directory of docker.io still hides _default")
		}
		return nil
	})
	c.behaviour.Store(answers)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
}

func TestProbeGoesAroundProxies(t *testing.T) {
	t.Parallel()
	proxy, c := newCache(t, "proxy"), newCache(t, "docker.io")
	n := newNode(t, "http_proxy="+proxy.Endpoint, "HTTPS_PROXY="+proxy.Endpoint, "ALL_PROXY="+proxy.Endpoint, "NO_PROXY=", "no_proxy=")
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	if got := proxy.probes.Load(); got != 0 {
		t.Errorf("the proxy got %d requests", got)
	}
}

func TestProbeIgnoresTheConfigurationOfTheUser(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".curlrc"), []byte("head\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, n := newCache(t, "docker.io"), newNode(t, "HOME="+home, "CURL_HOME="+home)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
}

func TestIPv6Endpoint(t *testing.T) {
	t.Parallel()
	if listener, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	} else if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	c, n := newCacheAt(t, "docker.io", "[::1]:0"), newNode(t)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	c.behaviour.Store(unavailable)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.direct())
}

func TestNodeWithoutCurl(t *testing.T) {
	t.Parallel()
	c := newCache(t, "docker.io")
	n := newNode(t, "PATH="+programs(t, "bash", "sleep", "mkdir", "sync", "mv", "rm", "rmdir", "cp"))
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+c.Endpoint+" is not used: ")
	n.awaitJournal(t, "curl: command not found\n")
	mustNotExist(t, n.hostsTOML("docker.io"))
}

func TestUnwritableDirectory(t *testing.T) {
	t.Parallel()
	blocked, other, n := newCache(t, "docker.io"), newCache(t, "quay.io"), newNode(t)
	n.configure(t, blocked.RegistryCacheStatus, other.RegistryCacheStatus)
	n.write(t, "etc/containerd/certs.d/docker.io", "not a directory")
	n.start(t)
	n.awaitContent(t, n.hostsTOML("quay.io"), other.through())
	n.awaitJournal(t, "docker.io: pulled from https://docker.io, hosts.toml cannot be written: ")
	n.awaitRounds(t, blocked)
	if got := strings.Count(n.journal.String(), "docker.io: "); got != 1 {
		t.Errorf("%d lines about docker.io in the journal, want one:\n%s", got, n.journal.String())
	}
	n.awaitContent(t, n.path("etc/containerd/certs.d/docker.io"), "not a directory")
}

// With a full disk, say: an entry that cannot be replaced must go, because its cache has gone.
func TestEntryThatCannotBeReplaced(t *testing.T) {
	t.Parallel()
	c, n := newCache(t, "docker.io"), newNode(t)
	n.configure(t, c.RegistryCacheStatus)
	n.start(t)
	n.awaitContent(t, n.hostsTOML("docker.io"), c.through())
	n.write(t, "etc/containerd/certs.d/docker.io/.hosts.toml.registry-cache/in-the-way", "")
	c.behaviour.Store(unavailable)
	n.awaitContent(t, n.hostsTOML("docker.io"), "")
	n.awaitJournal(t, "docker.io: pulled from https://docker.io, hosts.toml cannot be written: ")
}

// gardener-node-agent writes one file after the other.
func TestHalfWrittenEntry(t *testing.T) {
	t.Parallel()
	before, after, other, n := newCache(t, "docker.io"), newCache(t, "docker.io"), newCache(t, "quay.io"), newNode(t)
	n.configure(t, other.RegistryCacheStatus)
	n.write(t, HostsDirectory+"/docker.io/hosts.toml", after.through())
	n.start(t)
	n.awaitRounds(t, other)
	mustNotExist(t, n.hostsTOML("docker.io"))

	n.write(t, HostsDirectory+"/docker.io/endpoint", before.Endpoint+"\n")
	n.awaitJournal(t, "docker.io: pulled from https://docker.io, the cache "+before.Endpoint+" is not used: its hosts.toml does not belong to its endpoint\n")
	mustNotExist(t, n.hostsTOML("docker.io"))

	n.write(t, HostsDirectory+"/docker.io/endpoint", after.Endpoint+"\n")
	n.awaitContent(t, n.hostsTOML("docker.io"), after.through())
}

// programs returns a directory that has these programs only.
func programs(t *testing.T, names ...string) string {
	t.Helper()
	directory := t.TempDir()
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(directory, name)); err != nil {
			t.Fatal(err)
		}
	}
	return directory
}

func (j *journal) lines() []string {
	return strings.Split(strings.TrimSuffix(j.String(), "\n"), "\n")
}
