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
	"time"
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

// cleanupTime is how long mmdebstrap may take to remove what it has made when it is cancelled.
const cleanupTime = 30 * time.Second

// rootFS returns the path of the archive with the root file system, made if it is not in the cache.
func (b *builder) rootFS(ctx context.Context) (string, error) {
	r, err := hostRelease()
	if err != nil {
		return "", err
	}
	in := inputs{{"recipe", recipe}, {"release", r.id + " " + r.codename}, {"architecture", runtime.GOARCH}, {"packages", strings.Join(nodePackages(), " ")}}
	name := filepath.Join(b.cache, "rootfs", in.hash()+".tar")
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	return name, b.progress.Step("making a root file system of "+r.id+" "+r.codename+" packages", func() error {
		return replace(name, func(out io.Writer) error {
			return mmdebstrap(ctx, "minbase", nodePackages(), func(archive io.Reader) error {
				_, err := io.Copy(out, archive)
				return err
			})
		})
	})
}

// mmdebstrap passes the archive that mmdebstrap makes of the packages to use. The host's own sources and its settings
// of apt for reaching them hold; the settings do not stay in the archive.
func mmdebstrap(ctx context.Context, variant string, packages []string, use func(io.Reader) error) (err error) {
	r, err := hostRelease()
	if err != nil {
		return err
	}
	sources, err := hostSources(ctx, r)
	if err != nil {
		return err
	}
	settings, err := aptSettings(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(settings)) }()
	args := []string{
		"--quiet", "--mode=root", "--variant=" + variant, "--include=" + strings.Join(packages, ","),
		"--aptopt=" + settings, `--customize-hook=rm -f "$1/etc/apt/apt.conf.d/99mmdebstrap"`,
	}
	for _, unread := range []string{"man", "doc", "info", "locale", "lintian", "bug"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+unread+"/*")
	}
	args = append(append(args, r.codename, "-"), sources...)

	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	// It unmounts and removes its folders when it is told to end.
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(syscall.SIGTERM) }, cleanupTime
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting mmdebstrap: %w", err)
	}
	archive := bufio.NewReaderSize(stdout, 1<<20)
	useErr := use(archive)
	if useErr == nil {
		// A reader of the format stops before the padding at its end.
		_, useErr = io.Copy(io.Discard, archive)
	} else {
		// mmdebstrap ends when nobody reads what it writes.
		useErr = errors.Join(useErr, stdout.Close())
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(fmt.Errorf("running mmdebstrap --variant=%s for %s: %w: %s", variant, strings.Join(packages, " "), err, lastLines(stderr.Bytes())), useErr)
	}
	return useErr
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
