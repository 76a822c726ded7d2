// SPDX-License-Identifier: Apache-2.0

package kindcluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// trustScript restarts containerd, which reads the system's roots once, and remembers that at the end: when it is
// interrupted in between, the next run does all of it again. Pods go on running meanwhile.
const trustScript = `
stamp=/etc/ssl/certs/.testbed-$1.sha256
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$2" ]; then exit 0; fi
mkdir -p /usr/local/share/ca-certificates
cat >"/usr/local/share/ca-certificates/$1.crt"
update-ca-certificates >/dev/null 2>&1
systemctl restart containerd.service
printf %s "$2" >"$stamp"
`

// TrustCA adds the PEM certificates to the system trust of every node, under the name, which consists of lower-case
// letters, digits and dashes. They replace those of an earlier call with the name. containerd is restarted only if they
// have changed.
func (c *Cluster) TrustCA(ctx context.Context, name string, certificates []byte) error {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("name of a CA %q: use lower-case letters, digits and dashes", name)
	}
	if err := checkCertificates(certificates); err != nil {
		return fmt.Errorf("CA %s: %w", name, err)
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	hash := sha256.Sum256(certificates)
	err = onEach(ctx, nodes, func(ctx context.Context, node Node) error {
		_, err := node.Script(ctx, bytes.NewReader(certificates), trustScript, name, hex.EncodeToString(hash[:]))
		return err
	})
	if err != nil {
		return fmt.Errorf("trusting CA %s: %w", name, err)
	}
	return nil
}

func checkCertificates(certificates []byte) error {
	rest, found := certificates, 0
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("PEM block %q: only certificates are expected", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("parsing certificate %d: %w", found+1, err)
		}
		found++
	}
	if found == 0 {
		return errors.New("no PEM certificate")
	}
	return nil
}
