// SPDX-License-Identifier: Apache-2.0

package nodeimage

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/registry-cache/extension/test/testbed/host"
)

// Remove removes every image that the testbed has made from the engine's storage, and what an interrupted Ensure left
// there. An image that a container still uses stays and is an error: remove the cluster first.
func Remove(ctx context.Context, e *host.Engine) error {
	if err := (container{e}).remove(ctx); err != nil {
		return err
	}
	out, err := e.Run(ctx, nil, "images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference="+repository+"*")
	if err != nil {
		return fmt.Errorf("listing the testbed's images: %w", err)
	}
	var errs []error
	for ref := range strings.FieldsSeq(string(out)) {
		// Engines differ in what the filter's pattern matches.
		if strings.HasPrefix(ref, repository) {
			_, err := e.Run(ctx, nil, "rmi", ref)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
