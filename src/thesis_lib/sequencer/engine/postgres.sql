-- Every type of transaction as a function in the server; postgres.py creates them, and
-- puts in what stands in braces: begin, read, compute and write charge the time since
-- the last of them to a unit of `laps`. No column is called as a parameter or a
-- variable; `w` is the partition everywhere.

CREATE FUNCTION require_bearer(home bigint, dist bigint, cust bigint, last text)
RETURNS void LANGUAGE plpgsql STABLE AS $$
DECLARE
  found bigint;
BEGIN
  IF last IS NULL THEN
    RETURN;
  END IF;
  SELECT (array_agg(c_id ORDER BY c_first))[(count(*)::int + 1) / 2] INTO found
    FROM customer WHERE w = home AND c_d_id = dist AND c_last = last;
  IF found IS DISTINCT FROM cust THEN
    RAISE EXCEPTION '%', coalesce(found::text, '');
  END IF;
END $$;

CREATE FUNCTION new_order(
  home bigint, dist bigint, cust bigint, items bigint[], supplies bigint[],
  quantities bigint[], entered bigint, OUT committed boolean, OUT laps float8[]
) LANGUAGE plpgsql AS $$
DECLARE
  {clock}
  tax bigint; discount bigint; local_tax bigint; number bigint;
  prices bigint[]; infos text[]; amounts bigint[];
BEGIN
  {begin}
  SELECT w_tax INTO tax FROM warehouse WHERE w = home AND w_id = home;
  SELECT d_tax, d_next_o_id INTO local_tax, number
    FROM district WHERE w = home AND d_id = dist;
  SELECT c_discount INTO discount
    FROM customer WHERE w = home AND c_d_id = dist AND c_id = cust;
  SELECT array_agg(i_price ORDER BY n),
         array_agg(substr(s_dists, 24 * dist::int + 1, 24) ORDER BY n)
    INTO prices, infos
    FROM unnest(items, supplies) WITH ORDINALITY AS line (i, s, n)
    JOIN item ON item.w = home AND i_id = i
    JOIN stock ON stock.w = s AND s_i_id = i;
  {read}
  committed := coalesce(cardinality(prices), 0) = cardinality(items);
  IF NOT committed THEN  -- an unused item number: clause 2.4.1.4
    RETURN;
  END IF;
  FOR n IN 1..cardinality(items) LOOP
    amounts[n] := quantities[n] * prices[n]
      * ((10000 - discount) * (10000 + tax + local_tax)) / 100000000;
  END LOOP;
  {compute}
  UPDATE district SET d_next_o_id = number + 1 WHERE w = home AND d_id = dist;
  INSERT INTO orders VALUES (home, dist, number, cust, entered, NULL,
    cardinality(items), (home = ALL (supplies))::int);
  INSERT INTO new_order VALUES (home, dist, number);
  FOR n IN 1..cardinality(items) LOOP
    UPDATE stock SET
      s_quantity = s_quantity - quantities[n]
        + CASE WHEN s_quantity >= quantities[n] + 10 THEN 0 ELSE 91 END,
      s_ytd = s_ytd + quantities[n],
      s_order_cnt = s_order_cnt + 1,
      s_remote_cnt = s_remote_cnt + (supplies[n] <> home)::int
    WHERE w = supplies[n] AND s_i_id = items[n];
  END LOOP;
  INSERT INTO order_line
    SELECT home, dist, number, n - 1, i, s, NULL, q, amount, info
    FROM unnest(items, supplies, quantities, amounts, infos)
      WITH ORDINALITY AS line (i, s, q, amount, info, n);
  {write}
END $$;

CREATE FUNCTION payment(
  home bigint, dist bigint, cust_home bigint, cust_dist bigint, cust bigint, last text,
  cents bigint, entered bigint, OUT committed boolean, OUT laps float8[]
) LANGUAGE plpgsql AS $$
DECLARE
  {clock}
  names text; credit text; data text;
BEGIN
  {begin}
  SELECT w_name || '    ' || d_name INTO names
    FROM warehouse JOIN district ON district.w = warehouse.w
    WHERE warehouse.w = home AND w_id = home AND d_id = dist;
  PERFORM require_bearer(cust_home, cust_dist, cust, last);
  SELECT c_credit, c_data INTO credit, data
    FROM customer WHERE w = cust_home AND c_d_id = cust_dist AND c_id = cust;
  {read}
  IF credit = 'BC' THEN  -- clause 2.5.2.2: the record of a bad payer grows
    data := left(
      concat_ws(' ', cust, cust_dist, cust_home, dist, home, cents, data), 500);
  END IF;
  {compute}
  UPDATE warehouse SET w_ytd = w_ytd + cents WHERE w = home AND w_id = home;
  UPDATE district SET d_ytd = d_ytd + cents WHERE w = home AND d_id = dist;
  UPDATE customer SET c_balance = c_balance - cents,
      c_ytd_payment = c_ytd_payment + cents, c_payment_cnt = c_payment_cnt + 1,
      c_data = data
    WHERE w = cust_home AND c_d_id = cust_dist AND c_id = cust;
  INSERT INTO history
    VALUES (home, entered, cust_home, cust_dist, cust, dist, cents, names);
  {write}
  committed := true;
END $$;

CREATE FUNCTION order_status(
  home bigint, dist bigint, cust bigint, last text,
  OUT committed boolean, OUT laps float8[]
) LANGUAGE plpgsql AS $$
DECLARE
  {clock}
  number bigint;
BEGIN
  {begin}
  PERFORM require_bearer(home, dist, cust, last);
  PERFORM c_balance, c_first, c_last
    FROM customer WHERE w = home AND c_d_id = dist AND c_id = cust;
  SELECT o_id INTO number FROM orders
    WHERE w = home AND o_d_id = dist AND o_c_id = cust ORDER BY o_id DESC LIMIT 1;
  PERFORM ol_i_id, ol_supply_w_id, ol_quantity, ol_amount, ol_delivery
    FROM order_line WHERE w = home AND ol_d_id = dist AND ol_o_id = number;
  {read}
  committed := true;
END $$;

CREATE FUNCTION delivery(
  home bigint, carrier bigint, entered bigint,
  OUT committed boolean, OUT laps float8[]
) LANGUAGE plpgsql AS $$
DECLARE
  {clock}
  number bigint; cust bigint; total bigint;
BEGIN
  {begin}
  FOR dist IN 0..{districts} - 1 LOOP
    SELECT no_o_id INTO number FROM new_order
      WHERE w = home AND no_d_id = dist ORDER BY no_o_id LIMIT 1;
    IF number IS NULL THEN  -- clause 2.7.4.2: skip a district with none
      {read}
      CONTINUE;
    END IF;
    SELECT o_c_id INTO cust
      FROM orders WHERE w = home AND o_d_id = dist AND o_id = number;
    SELECT sum(ol_amount) INTO total
      FROM order_line WHERE w = home AND ol_d_id = dist AND ol_o_id = number;
    {read}
    DELETE FROM new_order WHERE w = home AND no_d_id = dist AND no_o_id = number;
    UPDATE orders SET o_carrier_id = carrier
      WHERE w = home AND o_d_id = dist AND o_id = number;
    UPDATE order_line SET ol_delivery = entered
      WHERE w = home AND ol_d_id = dist AND ol_o_id = number;
    UPDATE customer SET c_balance = c_balance + total,
        c_delivery_cnt = c_delivery_cnt + 1
      WHERE w = home AND c_d_id = dist AND c_id = cust;
    {write}
  END LOOP;
  committed := true;
END $$;

CREATE FUNCTION stock_level(
  home bigint, dist bigint, threshold bigint,
  OUT committed boolean, OUT laps float8[]
) LANGUAGE plpgsql AS $$
DECLARE
  {clock}
  next bigint;
BEGIN
  {begin}
  SELECT d_next_o_id INTO next FROM district WHERE w = home AND d_id = dist;
  PERFORM count(DISTINCT s_i_id) FROM order_line
    JOIN stock ON stock.w = home AND s_i_id = ol_i_id
    WHERE order_line.w = home AND ol_d_id = dist
      AND ol_o_id BETWEEN next - 20 AND next - 1 AND s_quantity < threshold;
  {read}
  committed := true;
END $$;

CREATE FUNCTION ycsb(
  home bigint, whats text[], records bigint[], fields bigint[], news bigint[],
  counts bigint, OUT committed boolean, OUT laps float8[]
) LANGUAGE plpgsql AS $$
DECLARE
  {clock}
  old text; first int; new text;
BEGIN
  {begin}
  FOR n IN 1..cardinality(whats) LOOP
    first := {field} * fields[n] + 1;
    new := lpad(news[n]::text, 10, '0');
    IF whats[n] = 'update' THEN
      UPDATE usertable SET y_fields =
          overlay(y_fields PLACING repeat(new, {field} / 10) FROM first FOR {field})
        WHERE w = home AND y_id = records[n];
      {write}
      CONTINUE;
    END IF;
    SELECT y_fields INTO old FROM usertable WHERE w = home AND y_id = records[n];
    {read}
    IF whats[n] = 'modify' THEN
      new := left(new || substr(old, first, {field}), {field});
      {compute}
      UPDATE usertable SET y_fields =
          overlay(old PLACING new FROM first FOR {field})
        WHERE w = home AND y_id = records[n];
      {write}
    END IF;
  END LOOP;
  IF counts IS NOT NULL THEN
    UPDATE counter SET n_value = n_value + 1 WHERE w = counts;
    {write}
  END IF;
  committed := true;
END $$;
