// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
)

// maxIndex bounds what is read from apt-get, in bytes. A host with many sources has some hundred kilobytes.
const maxIndex = 16 << 20

// release is the distribution of this host, from os-release(5).
type release struct {
	// id is such as "debian", codename such as "bookworm".
	id, codename string
}

func hostRelease() (release, error) {
	content, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return release{}, err
	}
	r := parseRelease(content)
	if r.id == "" || r.codename == "" {
		return r, errors.New("/etc/os-release names no release: a node image is built from the packages of a Debian or Ubuntu release, so set NODE_IMAGE on this host")
	}
	return r, nil
}

func parseRelease(content []byte) release {
	var r release
	for line := range strings.Lines(string(content)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch value = strings.Trim(value, `"'`); key {
		case "ID":
			r.id = value
		case "VERSION_CODENAME":
			r.codename = value
		}
	}
	return r
}

// indexFormat lists the fields of parseSources.
const indexFormat = "$(ORIGIN)|$(CODENAME)|$(TRUSTED)|$(ARCHITECTURE)|$(SITE)|$(RELEASE)|$(COMPONENT)"

// parseSources makes one-line entries of sources.list(5) from the lines of apt-get indextargets that belong to the
// release, its updates and its security updates. Other vendors' sources on the host are left out.
func parseSources(index []byte, r release, architecture string) []string {
	var entries []string
	for line := range strings.Lines(string(index)) {
		fields := strings.Split(strings.TrimSpace(line), "|")
		if len(fields) != 7 {
			continue
		}
		origin, codename, trusted, arch := fields[0], fields[1], fields[2], fields[3]
		ofRelease := codename == r.codename || strings.HasPrefix(codename, r.codename+"-")
		if !strings.EqualFold(origin, r.id) || !ofRelease || trusted != "yes" || arch != architecture {
			continue
		}
		entry := "deb " + strings.Join(fields[4:], " ")
		if !slices.Contains(entries, entry) {
			entries = append(entries, entry)
		}
	}
	return entries
}

// hostSources are the entries that apt on this host uses. Their details are known only after an update.
func hostSources(ctx context.Context, r release) ([]string, error) {
	for _, update := range []bool{false, true} {
		if update {
			if _, err := aptOutput(ctx, "apt-get", "update", "-qq"); err != nil {
				return nil, err
			}
		}
		index, err := aptOutput(ctx, "apt-get", "indextargets", "--format", indexFormat, "Created-By: Packages")
		if err != nil {
			return nil, err
		}
		if entries := parseSources(index, r, runtime.GOARCH); len(entries) > 0 {
			return entries, nil
		}
	}
	return nil, fmt.Errorf("this host's apt has no signed source of %s %s: add one, or set NODE_IMAGE", r.id, r.codename)
}

func aptOutput(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err == nil && len(out) > maxIndex {
		err = fmt.Errorf("more than %d bytes of output", maxIndex)
	}
	if err != nil {
		return nil, fmt.Errorf("running %s %s: %w: %s", program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// writeAptSettings writes what this host's apt needs to reach its sources, proxies for example, to a new file. It may
// hold credentials, so only its owner may read it.
func writeAptSettings(ctx context.Context, name string) error {
	settings := []byte("Acquire::Retries \"3\";\n")
	for _, tree := range []string{"Acquire::http", "Acquire::https", "Acquire::ForceIPv4", "Acquire::Check-Valid-Until", "Acquire::Check-Date"} {
		of, err := aptOutput(ctx, "apt-config", "dump", "--no-empty", tree)
		if err != nil {
			return err
		}
		settings = append(settings, of...)
	}
	return os.WriteFile(name, settings, 0o600)
}
