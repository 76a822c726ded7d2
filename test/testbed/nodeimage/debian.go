// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// nodePackages are the Debian packages of the image that is built from source: those of kind's base image without the
// ones for network storage, and in addition the ones that kind takes from elsewhere (runc, CNI plugins), an init and
// the bus through which programs speak with it.
func nodePackages() []string {
	return []string{
		"bash", "ca-certificates", "conntrack", "containernetworking-plugins", "curl", "dbus", "e2fsprogs", "ethtool",
		"iproute2", "iptables", "jq", "kmod", "libseccomp2", "mount", "nftables", "pigz", "procps", "runc", "systemd",
		"systemd-sysv", "util-linux",
	}
}

// kubeProxyPackages are the packages whose programs kube-proxy calls.
func kubeProxyPackages() []string {
	return []string{"conntrack", "ipset", "iptables", "kmod", "nftables"}
}

// rootFS returns the path of the archive with the root file system, made if it is not in the cache.
func (b *builder) rootFS(ctx context.Context) (string, error) {
	r, err := hostRelease()
	if err != nil {
		return "", err
	}
	a := packageArchive{release: r, variant: "minbase", packages: nodePackages(), keep: func(out io.Writer, files io.Reader) error {
		_, err := io.Copy(out, files)
		return err
	}}
	if name := a.path(b.cache); exists(name) {
		return name, nil
	}
	var name string
	err = b.progress.Step("making a root file system of "+r.id+" "+r.codename+" packages", func() (err error) {
		name, err = a.ensure(ctx, b.cache)
		return err
	})
	return name, err
}

// packageArchive is a tar archive that mmdebstrap makes of packages.
type packageArchive struct {
	release release
	// variant is mmdebstrap's: "minbase" is a root file system, "extract" has the files of the packages only.
	variant  string
	packages []string
	// keep writes what is wanted of mmdebstrap's archive.
	keep func(out io.Writer, files io.Reader) error
}

// path is where the archive is kept in the cache.
func (a packageArchive) path(cache string) string {
	in := inputs{
		{"recipe", recipe}, {"release", a.release.id + " " + a.release.codename}, {"architecture", runtime.GOARCH},
		{"variant", a.variant}, {"packages", strings.Join(a.packages, " ")},
	}
	return filepath.Join(cache, "packages", a.variant+"-"+in.hash()+".tar")
}

// ensure returns the archive's path in the cache after making it, if it is not there. One archive is made at a time.
func (a packageArchive) ensure(ctx context.Context, cache string) (name string, err error) {
	name = a.path(cache)
	if exists(name) {
		return name, nil
	}
	unlock, err := lock(ctx, filepath.Join(cache, "packages.lock"), func() {})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if exists(name) {
		return name, nil
	}
	// The lock is held, so what is there is of an interrupted run.
	scratch := filepath.Join(cache, "packages.scratch")
	if err := errors.Join(os.RemoveAll(scratch), os.Mkdir(scratch, 0o755)); err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	return name, replace(name, func(out io.Writer) error { return a.make(ctx, scratch, out) })
}

// make runs mmdebstrap with the host's own sources and with its settings of apt for reaching them. Neither stays in the
// archive: they may hold credentials. It works in scratch.
func (a packageArchive) make(ctx context.Context, scratch string, out io.Writer) error {
	sources, err := hostSources(ctx, a.release)
	if err != nil {
		return err
	}
	settings := filepath.Join(scratch, "apt.conf")
	if err := writeAptSettings(ctx, settings); err != nil {
		return err
	}
	// In namespaces of its own, nothing of it stays mounted and no program goes on, however it ends.
	args := []string{
		"--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"mmdebstrap", "--quiet", "--mode=root", "--variant=" + a.variant, "--include=" + strings.Join(a.packages, ","),
		"--aptopt=" + settings, `--customize-hook=rm "$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/apt/sources.list"`,
		// There is no use in a file system that survives a power failure before it is complete.
		"--dpkgopt=force-unsafe-io",
	}
	for _, unread := range []string{"man", "doc", "info", "locale", "lintian", "bug"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+unread+"/*")
	}
	args = append(append(args, a.release.codename, "-"), sources...)

	cmd := exec.CommandContext(ctx, "unshare", args...)
	var stderr bytes.Buffer
	cmd.Stderr, cmd.Env = &stderr, append(os.Environ(), "TMPDIR="+scratch, "LC_ALL=C")
	// It must not go on in scratch when this process has been killed. The signal is that of the thread which has started
	// the program.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting mmdebstrap: %w", err)
	}
	files := bufio.NewReaderSize(stdout, 1<<20)
	keepErr := a.keep(out, files)
	if keepErr == nil {
		// A reader of the format stops before the padding at its end.
		_, keepErr = io.Copy(io.Discard, files)
	} else {
		// mmdebstrap ends when nobody reads what it writes.
		keepErr = errors.Join(keepErr, stdout.Close())
	}
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("running mmdebstrap: %w", context.Cause(ctx))
		}
		return fmt.Errorf("running mmdebstrap for %s: %w: %s", strings.Join(a.packages, " "), err, lastLines(stderr.Bytes()))
	}
	return keepErr
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// lastLines is the end of a program's messages, for an error.
func lastLines(out []byte) string {
	const limit = 2000
	out = bytes.TrimSpace(out)
	if len(out) > limit {
		out = out[len(out)-limit:]
	}
	return strings.ToValidUTF8(string(out), "")
}
